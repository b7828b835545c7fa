/**
 * All conversations of this page on one connection: who is subscribed from which cursor, what was sent and not yet
 * acknowledged, what was read. The life of a conversation on the connection is its `link`:
 *
 *     none → loading → none → asked → live        (history first, unless the fold is already here)
 *     live → leaving → none                       (load again: a gap, or a `restart` behind what was seen)
 *     any  → none                                 (the connection is lost)
 */
import { eraseConversation, fetchHistory } from "./api.js";
import { freshId, memory } from "./memory.js";
import { chatMessage, Thread } from "./thread.js";

const LOAD_RETRY_MS = 2000;
const TITLE_CHARS = 80;

export class Store {
  /** `changed(thread)` after anything visible; `notice(text, kind)` for people; `removed(thread)`. */
  constructor({ changed, notice, removed }) {
    this.changed = changed;
    this.notice = notice;
    this.removed = removed;
    this.threads = new Map();
    this.currentId = null;
    this.connection = null;
    this.orderFaults = 0;
    for (const [id, saved] of memory.conversations()) this.threads.set(id, new Thread(id, saved));
    for (const [, frame] of memory.outbox()) this.open(frame.conversation_id).pending.push({ frame, failed: null });
    memory.watch((id, saved) => this.#fromOtherTab(id, saved));
  }

  get current() {
    return this.threads.get(this.currentId) ?? null;
  }

  /** Newest first; the order never changes under the reader's hand. */
  get list() {
    return [...this.threads.values()].sort((a, b) => b.created - a.created);
  }

  open(id) {
    let thread = this.threads.get(id);
    if (!thread) {
      thread = new Thread(id);
      this.threads.set(id, thread);
    }
    return thread;
  }

  select(id) {
    this.currentId = id;
    const thread = this.open(id);
    this.markRead(thread);
    this.#attach(thread);
    this.changed(thread);
    return thread;
  }

  /** Selects an empty conversation; the one that is already there, if any. */
  create() {
    const blank = this.list.find((thread) => thread.blank);
    if (blank) return this.select(blank.id);
    const thread = this.open(freshId("c"));
    thread.loaded = true; // nothing to ask for: the id was made a moment ago
    return this.select(thread.id);
  }

  markRead(thread) {
    if (thread.read >= thread.seq) return;
    thread.read = thread.seq;
    this.#save(thread);
  }

  send(thread, text, { onBusy, tools }) {
    const frame = chatMessage(thread.id, text, { onBusy, tools });
    const limit = this.connection.maxFrameBytes;
    const size = this.connection.frameBytes(frame);
    // Sent anyway it would close the connection, and be sent again after each reconnect.
    if (size > limit) {
      this.notice(`That message is ${size} bytes; this gateway takes at most ${limit}.`, "bad");
      return false;
    }
    thread.title ||= text.trim().replace(/\s+/g, " ").slice(0, TITLE_CHARS);
    thread.known = true;
    thread.pending.push({ frame, failed: null });
    memory.saveUnsent(frame.message_id, frame);
    this.#save(thread);
    if (thread.link === "live" || thread.link === "asked") this.connection.send(frame);
    else this.#attach(thread);
    this.changed(thread);
    return true;
  }

  retry(thread, pending) {
    pending.failed = null;
    if (thread.link === "live") this.connection.send(pending.frame);
    else this.#attach(thread);
    this.changed(thread);
  }

  discard(thread, pending) {
    this.#acknowledged(thread, pending.frame.message_id);
    this.changed(thread);
  }

  cancel(thread, turnId) {
    const frame = { type: "cancel", conversation_id: thread.id, turn_id: turnId, ref: `cancel.${turnId}` };
    if (!this.connection.send(frame)) this.notice("There is no connection: stop it again when it is back.", "bad");
  }

  /** `answer` is `{result}` or `{error}`; it is sent again after a reconnect until it is accepted. */
  answer(thread, callId, answer) {
    const frame = { type: "function_result", conversation_id: thread.id, call_id: callId, ...answer, ref: `call.${callId}` };
    thread.answers.set(callId, frame);
    this.connection.send(frame);
  }

  async remove(thread) {
    thread.deleting = true; // its `deleted` frame may come before the answer
    if (thread.seq > 0 || thread.pending.length > 0) {
      const problem = await eraseConversation(thread.id);
      if (problem) {
        thread.deleting = false;
        this.notice(`The conversation could not be deleted: ${problem}.`, "bad");
        return;
      }
    } else if (thread.link === "live") this.connection.send({ type: "unsubscribe", conversation_id: thread.id });
    this.#forget(thread);
  }

  #forget(thread) {
    if (!this.threads.has(thread.id)) return;
    for (const { frame } of thread.pending) memory.saveUnsent(frame.message_id, null);
    this.threads.delete(thread.id);
    memory.saveConversation(thread.id, null);
    this.removed(thread);
  }

  #fromOtherTab(id, saved) {
    const thread = this.threads.get(id);
    if (saved === null) {
      if (thread?.blank) this.#forget(thread);
    } else if (thread) {
      thread.title ||= saved.title ?? "";
      thread.read = Math.max(thread.read, saved.read ?? 0);
      this.changed(thread);
    } else {
      const adopted = new Thread(id, saved);
      this.threads.set(id, adopted);
      this.#attach(adopted);
      this.changed(adopted);
    }
  }

  #save(thread) {
    memory.saveConversation(thread.id, thread.saved);
  }

  // ------------------------------------------------------------------ the connection

  ready() {
    if (this.current) this.#attach(this.current);
    for (const thread of this.list) this.#attach(thread);
  }

  lost(closeCode) {
    for (const thread of this.threads.values()) {
      thread.link = "none";
      if (closeCode !== 1009) continue;
      const failed = { code: "FRAME_TOO_LARGE", message: "The gateway closed the connection over it.", retryable: false };
      for (const pending of thread.pending) pending.failed ??= failed;
    }
    if (this.current) this.changed(this.current);
  }

  async #attach(thread) {
    if (!this.connection?.ready || thread.link !== "none") return;
    if (!thread.loaded) {
      thread.link = "loading";
      thread.loading ??= this.#load(thread).finally(() => { thread.loading = null; });
      await thread.loading;
      if (thread.link !== "loading" || !this.threads.has(thread.id)) return;
      thread.link = "none";
      this.changed(thread);
      if (!this.connection.ready) return;
      if (!thread.loaded) {
        setTimeout(() => this.#attach(thread), LOAD_RETRY_MS);
        return;
      }
    }
    thread.link = "asked";
    const { id, seq, epoch } = thread;
    this.connection.send({ type: "subscribe", conversation_id: id, after: seq, epoch, ref: `subscribe.${id}` });
    for (const { frame, failed } of thread.pending) if (!failed) this.connection.send(frame);
    for (const frame of thread.answers.values()) this.connection.send(frame);
  }

  /** History over HTTP; its `seq` and `epoch` are the cursor to go on from. */
  async #load(thread) {
    const state = await fetchHistory(thread.id);
    if (state) this.#fold(thread, state);
    else if (state === null) {
      if (thread.known && thread.pending.length === 0) this.#forget(thread);
      thread.clear();
      thread.loaded = true;
    }
  }

  #fold(thread, state) {
    const present = new Set(state.messages.map((message) => message.message_id));
    thread.load(state);
    thread.loaded = true;
    thread.known = thread.seq > 0;
    thread.title ||= state.messages[0]?.content.slice(0, TITLE_CHARS) ?? "";
    for (const { frame } of [...thread.pending]) if (present.has(frame.message_id)) this.#acknowledged(thread, frame.message_id);
    if (thread.id === this.currentId && !document.hidden) thread.read = thread.seq;
    this.#save(thread);
    return present;
  }

  #acknowledged(thread, messageId) {
    const at = thread.pending.findIndex(({ frame }) => frame.message_id === messageId);
    if (at === -1) return;
    const [{ frame }] = thread.pending.splice(at, 1);
    thread.sent.set(messageId, frame);
    memory.saveUnsent(messageId, null);
  }

  receive(frame) {
    if (frame.type === "error" && !frame.seq) {
      this.#refused(frame);
      return;
    }
    const thread = this.threads.get(frame.conversation_id);
    if (!thread) return;
    switch (frame.type) {
      case "subscribed":
        thread.link = "live";
        thread.refusal = null;
        break;
      case "unsubscribed":
        thread.link = "none";
        if (!thread.loaded) this.#attach(thread);
        break;
      case "accepted":
        thread.answers.delete(frame.call_id);
        break;
      case "cancelled":
        if (frame.outcome === "not_found") this.notice("That turn isn't there any more.", "info");
        break;
      case "deleted":
        if (!thread.deleting) this.notice(`“${thread.title || thread.id}” was deleted on another device.`, "info");
        this.#forget(thread);
        return;
      case "snapshot":
        this.#snapshot(thread, frame);
        break;
      default:
        if (frame.seq) this.#logged(thread, frame);
    }
    this.changed(thread, frame);
  }

  #logged(thread, frame) {
    if (frame.type === "message") this.#acknowledged(thread, frame.message_id);
    if (thread.link !== "live") return;
    const outcome = thread.apply(frame);
    if (outcome === "gap") this.orderFaults += 1;
    if (outcome === "gap" || outcome === "stale") this.#reload(thread);
    if (frame.type === "done" || frame.type === "error") {
      thread.sent.delete(thread.byId.get(frame.turn_id)?.question?.messageId);
      this.#save(thread);
    }
    if (thread.id === this.currentId && !document.hidden) this.markRead(thread);
  }

  #reload(thread) {
    thread.loaded = false;
    thread.link = "leaving";
    this.connection.send({ type: "unsubscribe", conversation_id: thread.id, ref: `unsubscribe.${thread.id}` });
  }

  /** The log lost entries that this page had: show what it has, and send again what is missing and not yet answered. */
  #snapshot(thread, frame) {
    const present = this.#fold(thread, frame);
    for (const [messageId, lost] of [...thread.sent]) {
      if (present.has(messageId)) continue;
      thread.sent.delete(messageId);
      thread.pending.push({ frame: lost, failed: null });
      this.connection.send(lost);
    }
  }

  /** A frame of ours that was refused: `ref` says which. */
  #refused({ ref = "", error }) {
    const words = `${error.code}: ${error.message}`;
    for (const thread of this.threads.values()) {
      const pending = thread.pending.find(({ frame }) => frame.ref === ref);
      if (pending) pending.failed = error;
      else if (ref === `subscribe.${thread.id}`) Object.assign(thread, { link: "none", refusal: error });
      else if (ref.startsWith("call.") && thread.answers.delete(ref.slice("call.".length))) this.notice(words, "bad");
      else continue;
      this.changed(thread);
      return;
    }
    this.notice(words, "bad");
  }
}
