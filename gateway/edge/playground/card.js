/** A function call in an answer: what is asked, the form to answer it when that is up to people, and the result. */
import { h, icon, pretty, setAttribute, setText } from "./dom.js";

const ASKS = { client: "waits for you", approval: "wants your approval", gateway: "the gateway runs it" };
// A longer result starts folded.
const FOLD_CHARS = 400;

/** `onAnswer(callId, {result} | {error})` is called once per press of a button. */
export class CallCard {
  constructor(part, onAnswer) {
    this.state = h("span", { class: "call-state" });
    this.outcome = h("div", { class: "call-outcome" });
    this.form = part.answered || part.runs === "gateway" ? null
      : part.runs === "approval" ? this.#approval(part, onAnswer) : this.#form(part, onAnswer);
    this.shown = null;
    this.element = h("section", { class: "call", data: { call: part.callId, name: part.name } },
      h("header", {}, icon("function"), h("code", { class: "call-name", text: part.name }), this.state),
      h("pre", { class: "call-args", tabindex: "0", "aria-label": "Arguments", text: pretty(part.args) }));
    if (this.form) this.element.append(this.form);
    this.element.append(this.outcome);
    this.element.setAttribute("aria-label", `Function call ${part.name}`);
  }

  #approval(part, onAnswer) {
    const button = (text, result, kind) => h("button", {
      type: "button",
      class: kind,
      text,
      on: { click: () => { onAnswer(part.callId, { result }); setText(this.state, "sent"); } },
    });
    return h("div", { class: "call-form" },
      h("div", { class: "row" }, button("Approve", true, "primary small"), button("Decline", false, "small")));
  }

  #form(part, onAnswer) {
    const area = h("textarea", { rows: "3", spellcheck: "false", "aria-label": `Answer to ${part.name}, as JSON` });
    area.value = pretty(suggestion(part));
    const problem = h("p", { class: "problem", role: "alert" });
    const submit = h("button", { type: "submit", class: "primary small", text: "Send result" });
    const refuse = h("button", { type: "button", class: "small", text: "Send as error" });
    const form = h("form", { class: "call-form" }, area, problem, h("div", { class: "row" }, submit, refuse));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      try {
        const result = JSON.parse(area.value);
        problem.textContent = "";
        onAnswer(part.callId, { result });
        setText(this.state, "sent");
      } catch (error) {
        problem.textContent = `This isn't JSON yet: ${error.message}`;
        area.focus();
      }
    });
    refuse.addEventListener("click", () => {
      onAnswer(part.callId, { error: area.value.trim() || "failed" });
      setText(this.state, "sent");
    });
    return form;
  }

  update(part, turnEnded) {
    const state = part.answered ? (part.error === null ? "answered" : "error") : turnEnded ? "closed" : "open";
    const shown = `${state} ${part.runs}`;
    if (shown === this.shown) return;
    this.shown = shown;
    setAttribute(this.element, "data-state", state);
    const words = { answered: "answered", error: "answered with an error", closed: "closed without an answer" };
    setText(this.state, words[state] ?? ASKS[part.runs] ?? part.runs);
    if (state !== "open" || part.runs === "gateway") this.form?.remove(); // answered, or approved
    if (state === "open") return;
    this.outcome.replaceChildren();
    if (part.answered) this.outcome.append(outcome(part));
  }
}

function outcome({ error, result }) {
  const text = error ?? pretty(result);
  return h("details", { open: text.length <= FOLD_CHARS, class: error === null ? null : "bad" },
    h("summary", { text: error === null ? "Result" : "Error" }),
    h("pre", { tabindex: "0", text }));
}

/** Something plausible to send, so that a first answer is one click; it can be edited. */
function suggestion({ name, args }) {
  if (name === "get_weather") return { city: args.city ?? "Oslo", temperature_c: 7, sky: "light rain" };
  if (name === "get_time") return { time: new Date().toISOString() };
  return { ok: true };
}
