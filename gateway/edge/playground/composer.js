/** The message box: Enter sends, Shift+Enter breaks the line, Esc stops; grows with its text up to a bound. */
import { byId, h } from "./dom.js";

const MAX_HEIGHT_PX = 220;

export const PROMPTS = [
  ["Explain quantum computing", "in a few paragraphs"],
  ["/help", "what the demo model can do"],
  ['/call get_weather {"city":"Oslo"}', "a function call that you answer"],
  ["/long 400", "a long answer: cut the connection in it"],
  ["/fail rate_limited", "an upstream error, told as it is"],
  ["/echo Grüße, 世界 👩‍🚀!", "counted in code points"],
];

/** OpenAI's function format; offered with each message while the box is ticked. */
export const SAMPLE_TOOLS = [
  tool("get_weather", "The weather in a city, now.", { city: { type: "string", description: "Name of the city" } }, ["city"]),
  tool("get_time", "The date and time of the user.", {}, []),
];

function tool(name, description, properties, required) {
  return { type: "function", function: { name, description, parameters: { type: "object", properties, required } } };
}

export class Composer {
  /** `send(text, {onBusy, tools})` returns whether the text was taken; `stop()`. */
  constructor({ send, stop }) {
    this.box = byId("message");
    this.sendAction = send;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.submit();
      } else if (event.key === "Escape" && !byId("stop").hidden) stop();
    });
    this.box.addEventListener("input", () => this.#grow());
    byId("stop").addEventListener("click", stop);
    byId("prompts").append(...PROMPTS.map(([text, what]) => h("li", {},
      h("button", { type: "button", on: { click: () => this.#take(text) } }, h("strong", { text }), h("span", { text: what })))));
    this.#grow();
  }

  focus() {
    this.box.focus({ preventScroll: true });
  }

  paint(thread) {
    const running = thread.running;
    byId("stop").hidden = !running;
    byId("busy-choice").hidden = !running;
  }

  submit() {
    const text = this.box.value;
    if (text.trim() && this.#send(text)) {
      this.box.value = "";
      this.#grow();
    }
    this.focus();
  }

  #take(text) {
    this.#send(text);
    this.focus();
  }

  #send(text) {
    const tools = byId("offer-tools").checked ? SAMPLE_TOOLS : null;
    return this.sendAction(text, { onBusy: byId("busy-choice").hidden ? "queue" : byId("on-busy").value, tools });
  }

  #grow() {
    this.box.style.height = "auto";
    this.box.style.height = `${Math.min(this.box.scrollHeight, MAX_HEIGHT_PX)}px`;
  }
}
