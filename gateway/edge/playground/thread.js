/** A conversation as this page deals with it: the fold, its place on the connection, and what is under way to it. */
import { Conversation } from "./conversation.js";
import { freshId } from "./memory.js";

export class Thread extends Conversation {
  constructor(id, saved = {}) {
    super(id);
    this.title = saved.title ?? "";
    this.created = saved.created ?? Date.now();
    this.read = saved.read ?? 0;
    this.known = (saved.seq ?? 0) > 0; // it was in the log when this browser last saw it
    this.loaded = false;
    this.loading = null;
    this.link = "none";
    this.pending = []; // {frame, failed: null | {code, message, retryable}}
    this.sent = new Map(); // message_id → frame, until its turn has ended
    this.answers = new Map(); // call_id → frame, until `accepted`
    this.refusal = null;
    this.deleting = false;
  }

  get blank() {
    return this.turns.length === 0 && this.pending.length === 0 && !this.known;
  }

  /** What the page remembers of it across reloads. */
  get saved() {
    const { title, created, seq, epoch, read } = this;
    return { title, created, seq, epoch, read };
  }

  get unread() {
    return this.seq > this.read;
  }
}

/** A `chat_message` that can be sent again: its own `message_id` is also its `ref`. */
export function chatMessage(conversationId, message, { onBusy, tools }) {
  const frame = { type: "chat_message", conversation_id: conversationId, message_id: freshId("m"), message };
  if (onBusy !== "queue") frame.on_busy = onBusy;
  if (tools) frame.tools = tools;
  frame.ref = frame.message_id;
  return frame;
}
