// Node's most used WebSocket server, as the README of `ws` shows it (github.com/websockets/ws), with the npm package
// `openai`. node ws.js PORT
import { WebSocketServer } from 'ws';
import { tokens } from './upstream.js';

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), path: '/chat' });

server.on('connection', (socket) => {
  socket.on('error', console.error);
  socket.on('message', (data) => {
    const { conversation_id, message } = JSON.parse(data);
    answer(socket, conversation_id, message).catch(console.error);
  });
});

async function answer(socket, conversation_id, message) {
  for await (const content of tokens(message)) {
    if (socket.readyState !== socket.OPEN) return; // leaving the loop closes the upstream request
    socket.send(JSON.stringify({ type: 'token', conversation_id, content }));
  }
  socket.send(JSON.stringify({ type: 'done', conversation_id }));
}
