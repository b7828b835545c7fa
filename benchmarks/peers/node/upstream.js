// The upstream of the Node peers: a stream of the npm package `openai`, as its README shows it under "Streaming
// responses". Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY.
import OpenAI from 'openai';

const client = new OpenAI();

/** The pieces of text of the answer to one user message. */
export async function* tokens(message) {
  const stream = await client.chat.completions.create({
    model: 'bench',
    messages: [{ role: 'user', content: message }],
    stream: true,
  });
  for await (const chunk of stream) {
    const content = chunk.choices[0]?.delta?.content;
    if (content) yield content;
  }
}
