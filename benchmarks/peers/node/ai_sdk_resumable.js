// The Vercel AI SDK with `resumable-stream` on Redis, as its page "Chatbot Resume Streams" shows it
// (ai-sdk.dev/docs/ai-sdk-ui/chatbot-resume-streams), on Node's own HTTP server as `streamText`'s reference shows it.
// node ai_sdk_resumable.js PORT; REDIS_URL names the Redis.
//
// POST /api/chat {"id","message": a UIMessage} starts a stream; GET /api/chat/ID/stream resumes the running one, 204
// when none is running. The page's store of chats is a map here: it costs nothing. Unlike on the page there is one
// context for all requests, so that not every request opens two connections to Redis.
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { convertToModelMessages, generateId, streamText, UI_MESSAGE_STREAM_HEADERS } from 'ai';
import { createResumableStreamContext } from 'resumable-stream';

const provider = createOpenAICompatible({
  name: 'bench',
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const streams = createResumableStreamContext({ waitUntil: null }); // a server outlives its responses
const chats = new Map(); // id -> {messages, activeStreamId}

function saveChat(id, changed) {
  chats.set(id, { messages: [], ...chats.get(id), ...changed });
}

async function start(request, response) {
  const body = [];
  for await (const data of request) body.push(data);
  const { id, message } = JSON.parse(Buffer.concat(body));
  const messages = [...(chats.get(id)?.messages ?? []), message];
  saveChat(id, { messages, activeStreamId: null });
  const result = streamText({ model: provider('bench'), messages: await convertToModelMessages(messages) });
  result.pipeUIMessageStreamToResponse(response, {
    originalMessages: messages,
    generateMessageId: generateId,
    onFinish: ({ messages }) => saveChat(id, { messages, activeStreamId: null }),
    async consumeSseStream({ stream }) {
      const activeStreamId = generateId();
      await streams.createNewResumableStream(activeStreamId, () => stream);
      saveChat(id, { activeStreamId });
    },
  });
}

async function resume(id, response) {
  const { activeStreamId } = chats.get(id) ?? {};
  const stream = activeStreamId ? await streams.resumeExistingStream(activeStreamId) : null;
  if (!stream) {
    response.writeHead(204).end();
    return;
  }
  response.writeHead(200, UI_MESSAGE_STREAM_HEADERS);
  Readable.fromWeb(stream.pipeThrough(new TextEncoderStream())).pipe(response);
}

createServer((request, response) => {
  const resumed = /^\/api\/chat\/([^/]+)\/stream$/.exec(request.url);
  const handled = resumed ? resume(decodeURIComponent(resumed[1]), response) : start(request, response);
  handled.catch((error) => {
    console.error(error);
    response.destroy();
  });
}).listen(Number(process.argv[2]), '127.0.0.1');
