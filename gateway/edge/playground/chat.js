/** The chat of one conversation. Each turn is one element that redraws only when its turn has a new version. */
import { CallCard } from "./card.js";
import { copyButton, count, h, icon, setAttribute, setText } from "./dom.js";
import { MarkdownView } from "./markdown.js";

// Nearer than this to the end, the page follows the text.
const FOLLOW_PX = 80;

class TurnView {
  constructor(turn, actions) {
    this.actions = actions;
    this.version = -1;
    this.views = new Map(); // part → {element, update}
    this.question = h("div", { class: "question-text" });
    this.queue = h("div", { class: "queue-note" }, "waits its turn",
      h("button", { class: "quiet small", type: "button", text: "Withdraw", on: { click: () => actions.cancel(turn.id) } }));
    this.answer = h("div", { class: "answer-parts" });
    this.thinking = h("div", { class: "thinking", "aria-label": "The answer is on its way" }, h("i"), h("i"), h("i"));
    this.failure = h("div", { class: "failure" });
    this.foot = h("footer", { class: "facts" });
    this.element = h("article", { class: "turn", data: { turn: turn.id } },
      h("div", { class: "question" }, this.question, this.queue),
      h("div", { class: "answer" }, this.answer, this.thinking, this.failure, this.foot));
  }

  update(turn) {
    if (turn.version === this.version && turn.status === this.status) return;
    this.version = turn.version;
    this.status = turn.status;
    setAttribute(this.element, "data-status", turn.status);
    setText(this.question, turn.question?.content ?? "(a question of an earlier version)");
    this.#parts(turn);
    const live = turn.status === "running";
    this.thinking.hidden = !live || turn.parts.at(-1)?.kind === "text";
    this.answer.classList.toggle("streaming", live && turn.parts.at(-1)?.kind === "text");
    this.failure.hidden = !turn.error;
    if (turn.error) this.#failure(turn);
    if (turn.ended) this.foot.replaceChildren(...facts(turn));
  }

  #parts(turn) {
    const wanted = new Set(turn.parts);
    for (const [part, view] of this.views) {
      if (wanted.has(part)) continue;
      view.element.remove();
      this.views.delete(part);
    }
    turn.parts.forEach((part, index) => {
      let view = this.views.get(part);
      if (!view) {
        view = this.#view(part);
        this.views.set(part, view);
      }
      if (this.answer.children[index] !== view.element) this.answer.insertBefore(view.element, this.answer.children[index] ?? null);
      if (part.kind === "text") view.update(part.text);
      else view.update(part, turn.ended);
    });
  }

  #view(part) {
    if (part.kind === "text") return new MarkdownView();
    if (part.kind === "call") return new CallCard(part, this.actions.answer);
    return { element: h("p", { class: "note", data: { note: part.note }, text: noteWords(part) }), update() {} };
  }

  #failure(turn) {
    const { code, message, retryable } = turn.error;
    this.failure.replaceChildren(
      h("strong", { text: code }),
      h("span", { text: message }),
      retryable
        ? h("button", { class: "small", type: "button", on: { click: () => this.actions.again(turn.question.content) } }, icon("again"), "Ask again")
        : "");
  }
}

function noteWords(part) {
  if (part.note === "restart") return `Its node was lost: this part of the answer is written again (attempt ${part.attempt}).`;
  const { messages_before: m0, messages_after: m1, tokens_before: t0, tokens_after: t1 } = part.compacted;
  return `Older messages were compressed: ${count(m0)} → ${count(m1)} messages, ${count(t0)} → ${count(t1)} tokens.`;
}

/** The small print under a finished answer; the proof comes first. */
function facts(turn) {
  const items = [];
  if (turn.proof) {
    const { expected, actual } = turn.proof;
    const whole = expected === actual;
    items.push(h("span", {
      class: "proof",
      data: { proof: whole ? "ok" : "broken" },
      title: whole ? "The gateway's text_length equals what arrived here: nothing lost, nothing twice." : "Text is missing or doubled.",
      text: whole ? `✓ ${count(actual)} characters` : `✗ ${count(actual)} of ${count(expected)} characters`,
    }));
  } else if (turn.points) items.push(h("span", { text: `${count(turn.points)} characters`, title: "From the history." }));
  if (turn.status === "cancelled") items.push(h("span", { class: "reason", text: "stopped" }));
  else if (turn.finishReason && turn.finishReason !== "stop") items.push(h("span", { class: "reason", text: turn.finishReason }));
  if (turn.usage) {
    const { prompt_tokens: prompt, completion_tokens: completion } = turn.usage;
    items.push(h("span", { text: `${count(prompt)} → ${count(completion)} tokens`, title: "Prompt and completion tokens, as the model counts them." }));
  }
  if (turn.askedAt && turn.firstTokenAt) items.push(h("span", { text: `first token ${millis(turn.firstTokenAt - turn.askedAt)}` }));
  if (turn.askedAt && turn.endedAt) items.push(h("span", { text: millis(turn.endedAt - turn.askedAt), title: "From the question to the end." }));
  if (turn.points) items.push(copyButton("Copy", () => turn.text));
  return items;
}

const millis = (ms) => (ms < 1000 ? `${Math.max(ms, 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

function pendingView({ frame, failed }, actions) {
  const state = failed
    ? h("div", { class: "queue-note bad" }, h("span", { text: `${failed.code}: ${failed.message}` }),
      h("button", { class: "small", type: "button", text: "Send again", on: { click: actions.retry } }),
      h("button", { class: "quiet small", type: "button", text: "Discard", on: { click: actions.discard } }))
    : h("div", { class: "queue-note", text: "sending …" });
  return h("article", { class: "turn pending", data: { message: frame.message_id } },
    h("div", { class: "question" }, h("div", { class: "question-text", text: frame.message }), state));
}

export class ChatView {
  /** `actions`: `cancel(turnId)`, `answer(callId, answer)`, `again(text)`, `retry(pending)`, `discard(pending)`. */
  constructor({ scroller, log, welcome, jump }, actions) {
    Object.assign(this, { scroller, log, welcome, jump, actions });
    this.views = new Map();
    this.thread = null;
    this.pendingKey = "";
    this.pending = h("div");
    this.turns = h("div");
    log.append(this.turns, this.pending);
    this.following = true;
    scroller.addEventListener("scroll", () => {
      this.following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < FOLLOW_PX;
      jump.hidden = this.following;
    }, { passive: true });
    jump.addEventListener("click", () => this.follow());
  }

  follow() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  paint(thread) {
    if (thread !== this.thread) {
      this.thread = thread;
      this.views.clear();
      this.turns.replaceChildren();
      this.pendingKey = "";
      this.following = true;
    }
    const empty = thread.turns.length === 0 && thread.pending.length === 0;
    this.welcome.hidden = !empty || (thread.known && !thread.loaded);
    this.log.hidden = empty;
    this.#paintTurns(thread);
    this.#paintPending(thread);
    if (empty) this.scroller.scrollTop = 0;
    else if (this.following) this.follow();
  }

  #paintTurns(thread) {
    const wanted = new Set(thread.turns);
    for (const [turn, view] of this.views) {
      if (wanted.has(turn)) continue;
      view.element.remove();
      this.views.delete(turn);
    }
    thread.turns.forEach((turn, index) => {
      let view = this.views.get(turn);
      if (!view) {
        view = new TurnView(turn, this.actions);
        this.views.set(turn, view);
      }
      if (this.turns.children[index] !== view.element) this.turns.insertBefore(view.element, this.turns.children[index] ?? null);
      view.update(turn);
    });
  }

  #paintPending(thread) {
    const key = thread.pending.map(({ frame, failed }) => `${frame.message_id}${failed?.code ?? ""}`).join();
    if (key === this.pendingKey) return;
    this.pendingKey = key;
    this.pending.replaceChildren(...thread.pending.map((pending) => pendingView(pending, {
      retry: () => this.actions.retry(pending),
      discard: () => this.actions.discard(pending),
    })));
  }
}
