// socket.io's server, WebSocket only, as its tutorial and the page on server options show it (socket.io/docs/v4),
// with the npm package `openai`. node socketio.js PORT
import { Server } from 'socket.io';
import { tokens } from './upstream.js';

const io = new Server({ transports: ['websocket'] });

io.on('connection', (socket) => {
  socket.on('chat_message', ({ conversation_id, message }) => {
    answer(socket, conversation_id, message).catch(console.error);
  });
});

async function answer(socket, conversation_id, message) {
  for await (const content of tokens(message)) {
    if (!socket.connected) return; // leaving the loop closes the upstream request
    socket.emit('token', { type: 'token', conversation_id, content });
  }
  socket.emit('done', { type: 'done', conversation_id });
}

io.attach(Number(process.argv[2]));
