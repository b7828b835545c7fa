/**
 * The exact fold of a conversation's log into what people read. Pure: no sockets, no DOM, no clock.
 *
 * `load` takes the body of `GET /api/conversations/{id}` or a `snapshot`; `apply` takes one logged frame. The cursor
 * (`seq`, `epoch`) always names the last entry that is folded in. The WebSocket and the SSE reader use the same fold.
 */

const ENDED = new Set(["completed", "cancelled", "failed"]);

/** Unicode code points, as `text_length` counts them (a JavaScript string's length counts UTF-16 units). */
export function codePoints(text) {
  let n = 0;
  for (const _ of text) n += 1;
  return n;
}

class Turn {
  constructor(id) {
    this.id = id;
    this.seq = null; // of its `message`; unknown for turns that came with a snapshot
    this.question = null;
    this.parts = []; // {kind: "text" | "call" | "note", …} in the order of the log
    this.status = "queued";
    this.points = 0;
    this.proof = null; // {expected, actual} once `done` was seen live
    this.finishReason = null;
    this.usage = null;
    this.error = null;
    this.askedAt = null;
    this.firstTokenAt = null;
    this.endedAt = null;
    this.version = 0; // rises with every change: the view's only question is whether it has this version
  }

  get ended() {
    return ENDED.has(this.status);
  }

  get text() {
    return this.parts.map((part) => (part.kind === "text" ? part.text : "")).join("");
  }

  get openCalls() {
    return this.ended ? [] : this.parts.filter((part) => part.kind === "call" && !part.answered);
  }

  /** Whether people have to answer something before it goes on; what the gateway runs isn't theirs to answer. */
  get waits() {
    return this.openCalls.some((part) => part.runs !== "gateway");
  }
}

export class Conversation {
  constructor(id) {
    this.id = id;
    this.clear();
  }

  clear() {
    this.seq = 0;
    this.epoch = 0;
    this.turns = [];
    this.byId = new Map();
  }

  get running() {
    return this.turns.find((turn) => !turn.ended && turn.status !== "queued") ?? null;
  }

  /** `idle`, `streaming`, `waiting` (for a function result) or `failed` (the last turn did). */
  get state() {
    const running = this.running;
    if (running) return running.waits ? "waiting" : "streaming";
    if (this.turns.some((turn) => !turn.ended)) return "streaming";
    return this.turns.at(-1)?.status === "failed" ? "failed" : "idle";
  }

  /** Replaces everything by a fold that the gateway made. */
  load({ seq, epoch, messages, turn }) {
    this.clear();
    this.seq = seq;
    this.epoch = epoch;
    for (const message of messages) this.#loadMessage(message);
    if (turn) {
      const running = this.#turn(turn.turn_id);
      running.status = turn.status;
      running.seq = turn.seq;
    }
  }

  #loadMessage(message) {
    const turn = this.#turn(message.turn_id);
    turn.status = message.status;
    if (message.error) turn.error = message.error;
    if (message.role === "user") {
      turn.question = { content: message.content, messageId: message.message_id };
      turn.askedAt = message.timestamp;
      return;
    }
    turn.finishReason = message.finish_reason ?? null;
    turn.usage = message.usage ?? null;
    turn.points = codePoints(message.content);
    let rest = [...message.content];
    let taken = 0;
    for (const call of message.function_calls ?? []) {
      this.#addText(turn, rest.splice(0, call.offset - taken).join(""), null, this.seq);
      taken = call.offset;
      turn.parts.push(callPart(call));
    }
    this.#addText(turn, rest.join(""), null, this.seq);
  }

  /**
   * Folds in one logged frame. Returns `applied`; `duplicate` (a copy outside the order: nothing to do); `gap` (the
   * order check of the contract failed: nothing was folded in); or `stale` (a `restart` reaches back into text whose
   * entries this fold never saw one by one: load again).
   */
  apply(frame) {
    if (frame.duplicate) return "duplicate";
    if ((frame.first_seq ?? frame.seq) !== this.seq + 1) return "gap";
    const turn = this.#turn(frame.turn_id);
    let outcome = "applied";
    if (frame.type === "message") this.#message(turn, frame);
    else {
      if (turn.status === "queued") this.#start(turn);
      outcome = this.#entry(turn, frame);
    }
    this.seq = frame.seq;
    this.epoch = frame.epoch ?? 0;
    turn.version += 1;
    return outcome;
  }

  #message(turn, frame) {
    turn.seq = frame.seq;
    turn.question = { content: frame.content, messageId: frame.message_id };
    turn.askedAt = frame.metadata?.timestamp ?? null;
    const others = this.turns.filter((other) => other !== turn);
    if (others.every((other) => other.ended)) turn.status = "running";
    else if (frame.interrupt) this.#moveBehindStarted(turn);
  }

  #start(turn) {
    turn.status = "running";
    this.#moveBehindStarted(turn);
  }

  #moveBehindStarted(turn) {
    this.turns.splice(this.turns.indexOf(turn), 1);
    const waiting = this.turns.findIndex((other) => other.status === "queued");
    this.turns.splice(waiting === -1 ? this.turns.length : waiting, 0, turn);
  }

  #entry(turn, frame) {
    const at = frame.metadata?.timestamp ?? null;
    switch (frame.type) {
      case "token":
        turn.firstTokenAt ??= at;
        turn.points += codePoints(frame.content);
        this.#addText(turn, frame.content, frame.first_seq ?? frame.seq, frame.seq);
        return "applied";
      case "function_call":
        askCall(turn, frame);
        turn.status = turn.waits ? "function_call" : "running";
        return "applied";
      case "function_result":
        answerCall(turn, frame);
        if (!turn.waits) turn.status = "running";
        return "applied";
      case "context":
        turn.parts.push({ kind: "note", note: "context", compacted: frame.compacted });
        return "applied";
      case "restart":
        return this.#restart(turn, frame);
      case "done":
        turn.finishReason = frame.finish_reason;
        turn.usage = frame.usage ?? null;
        if (frame.text_length !== undefined) turn.proof = { expected: frame.text_length, actual: turn.points };
        this.#end(turn, frame.finish_reason === "cancelled" ? "cancelled" : "completed", at);
        return "applied";
      case "error":
        turn.error = frame.error;
        this.#end(turn, "failed", at);
        return "applied";
      default:
        return "applied"; // a type of a later version: it keeps its place in the order
    }
  }

  #end(turn, status, at) {
    turn.status = status;
    turn.endedAt = at;
    for (const part of turn.parts) if (part.kind === "text") part.marks = [];
    const next = this.turns.find((other) => other.status === "queued");
    if (next && !this.running) {
      next.status = "running";
      next.version += 1;
    }
  }

  #addText(turn, text, first, last) {
    if (text === "") return;
    let part = turn.parts.at(-1);
    if (part?.kind !== "text") {
      part = { kind: "text", text: "", marks: [] };
      turn.parts.push(part);
    }
    part.text += text;
    // Which entries stand behind which length, so that `restart` can cut exactly; forgotten when the turn ends.
    part.marks.push({ first, last, length: part.text.length });
  }

  /** Drops the turn's text after entry `keep_seq`. */
  #restart(turn, frame) {
    let stale = false;
    for (const part of turn.parts) {
      if (part.kind !== "text") continue;
      let keep = 0;
      for (const mark of part.marks) {
        const first = mark.first ?? (turn.seq === null ? 0 : turn.seq + 1);
        if (mark.last <= frame.keep_seq) keep = mark.length;
        else if (first <= frame.keep_seq) stale = true;
      }
      part.text = part.text.slice(0, keep);
      part.marks = part.marks.filter((mark) => mark.length <= keep);
    }
    turn.parts = turn.parts.filter((part) => part.kind !== "text" || part.text !== "");
    turn.parts.push({ kind: "note", note: "restart", attempt: frame.attempt });
    turn.points = codePoints(turn.text);
    return stale ? "stale" : "applied";
  }

  #turn(id) {
    let turn = this.byId.get(id);
    if (!turn) {
      turn = new Turn(id);
      this.byId.set(id, turn);
      this.turns.push(turn);
    }
    return turn;
  }
}

function callPart(call) {
  const answered = "result" in call || (call.error !== undefined && call.error !== null);
  const { call_id: callId, name, args, runs } = call;
  return { kind: "call", callId, name, args, runs, answered, result: call.result, error: call.error ?? null };
}

const findCall = (turn, callId) => turn.parts.find((part) => part.kind === "call" && part.callId === callId);

/** A call that is logged again was approved: from now on the gateway runs it. */
function askCall(turn, frame) {
  const part = findCall(turn, frame.call_id);
  if (part) part.runs = frame.runs;
  else turn.parts.push(callPart(frame));
}

function answerCall(turn, frame) {
  const part = findCall(turn, frame.call_id);
  if (!part) return;
  part.answered = true;
  part.result = frame.result;
  part.error = frame.error ?? null;
}
