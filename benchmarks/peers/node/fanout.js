// Fan-out on `ws`: whoever subscribed to a conversation gets every token of it, encoded once, as under "Server
// broadcast" in the README of `ws` (github.com/websockets/ws). node fanout.js PORT
//
// {"type":"subscribe","conversation_id"} is answered by {"type":"subscribed",…}; {"type":"chat_message",…} subscribes
// its sender too and starts the stream.
import { WebSocketServer } from 'ws';
import { tokens } from './upstream.js';

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), path: '/chat' });
const readers = new Map(); // conversation id -> its sockets

server.on('connection', (socket) => {
  const following = new Set();
  socket.on('error', console.error);
  socket.on('close', () => following.forEach((id) => leave(id, socket)));
  socket.on('message', (data) => {
    const { type, conversation_id, message } = JSON.parse(data);
    if (!readers.has(conversation_id)) readers.set(conversation_id, new Set());
    readers.get(conversation_id).add(socket);
    following.add(conversation_id);
    if (type === 'subscribe') socket.send(JSON.stringify({ type: 'subscribed', conversation_id }));
    else answer(conversation_id, message).catch(console.error);
  });
});

function leave(id, socket) {
  const sockets = readers.get(id);
  sockets.delete(socket);
  if (sockets.size === 0) readers.delete(id);
}

async function answer(conversation_id, message) {
  for await (const content of tokens(message)) {
    broadcast(conversation_id, JSON.stringify({ type: 'token', conversation_id, content }));
  }
  broadcast(conversation_id, JSON.stringify({ type: 'done', conversation_id }));
}

function broadcast(conversation_id, frame) {
  for (const socket of readers.get(conversation_id) ?? []) {
    if (socket.readyState === socket.OPEN) socket.send(frame);
  }
}
