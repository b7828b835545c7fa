/** The list of conversations, each with its live state; rows are kept and only changed where they differ. */
import { h, icon, setAttribute, setText } from "./dom.js";

const STATE_WORDS = { idle: "", streaming: "answering", waiting: "waits for a function", failed: "failed" };
const CONFIRM_MS = 3000;

export class Sidebar {
  constructor(list, { select, remove }) {
    this.list = list;
    this.actions = { select, remove };
    this.rows = new Map();
  }

  paint(threads, currentId) {
    const wanted = new Set(threads);
    for (const [thread, row] of this.rows) {
      if (wanted.has(thread)) continue;
      row.element.remove();
      this.rows.delete(thread);
    }
    threads.forEach((thread, index) => {
      const row = this.rows.get(thread) ?? this.#row(thread);
      if (this.list.children[index] !== row.element) this.list.insertBefore(row.element, this.list.children[index] ?? null);
      this.#update(row, thread, thread.id === currentId);
    });
  }

  #row(thread) {
    const title = h("span", { class: "title" });
    const note = h("span", { class: "state-note" });
    const mark = h("span", { class: "unread-mark" });
    const open = h("button", { class: "open", type: "button", on: { click: () => this.actions.select(thread.id) } },
      h("i", { class: "dot" }), h("span", { class: "lines" }, title, note), mark);
    const row = { open, title, note, mark, element: h("li", { class: "conversation", data: { id: thread.id } }, open, this.#deleter(thread)) };
    this.rows.set(thread, row);
    return row;
  }

  /** Deleting asks once more in place: the first press arms the button for a moment. */
  #deleter(thread) {
    const word = h("span", { text: "" });
    const button = h("button", { class: "delete quiet", type: "button", "aria-label": "Delete the conversation" }, icon("trash"), word);
    const disarm = () => {
      button.classList.remove("armed");
      word.textContent = "";
    };
    button.addEventListener("click", () => {
      if (button.classList.contains("armed")) {
        disarm();
        this.actions.remove(thread);
        return;
      }
      button.classList.add("armed");
      word.textContent = "Delete?";
      setTimeout(disarm, CONFIRM_MS);
    });
    button.addEventListener("blur", disarm);
    return button;
  }

  #update({ element, open, title, note, mark }, thread, current) {
    const state = thread.refusal ? "failed" : thread.state;
    const unread = thread.unread && !current;
    setAttribute(element, "data-state", state);
    setAttribute(element, "data-unread", unread);
    setAttribute(open, "aria-current", current ? "page" : null);
    setText(title, thread.title || "New conversation");
    setAttribute(open, "title", thread.title || null);
    setText(note, thread.refusal ? thread.refusal.code : STATE_WORDS[state]);
    setText(mark, unread ? "new" : "");
  }
}
