/** The last frames of the socket, as they were on it: a bounded ring, drawn only while the drawer is open. */
import { byId, count, h, pretty, setText } from "./dom.js";

const KEPT_FRAMES = 200;
const LINE_CHARS = 160;
const ID_TAIL_CHARS = 4;
const QUIET = new Set(["ping", "pong"]);

export class Wire {
  constructor(root) {
    this.ring = [];
    this.total = 0;
    this.open = false;
    this.paused = false;
    this.filter = byId("wire-filter");
    this.pings = byId("wire-pings");
    this.summary = byId("wire-summary");
    this.list = h("ol", { class: "frames", tabindex: "0", "aria-label": "Raw frames, newest last" });
    this.drawn = 0;
    root.append(this.list);
    this.filter.addEventListener("change", () => this.redraw());
    this.pings.addEventListener("change", () => this.redraw());
    byId("wire-clear").addEventListener("click", () => {
      this.ring = [];
      this.redraw();
    });
    byId("wire-pause").addEventListener("click", ({ currentTarget }) => {
      this.paused = !this.paused;
      currentTarget.setAttribute("aria-pressed", this.paused);
      if (!this.paused) this.redraw();
    });
  }

  record(direction, frame) {
    this.total += 1;
    this.ring.push({ number: this.total, direction, frame, at: new Date() });
    if (this.ring.length > KEPT_FRAMES) this.ring.shift();
  }

  redraw() {
    this.list.replaceChildren();
    this.drawn = 0;
    this.paint(this.currentId, true);
  }

  paint(currentId, force = false) {
    const moved = this.currentId !== currentId && this.filter.value === "current";
    this.currentId = currentId;
    if (!this.open || (this.paused && !force)) return;
    if (moved) {
      this.redraw();
      return;
    }
    const level = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
    const fresh = this.ring.filter((entry) => entry.number > this.drawn);
    this.drawn = this.total;
    this.list.append(...fresh.filter((entry) => this.#wanted(entry)).map(row));
    while (this.list.childElementCount > KEPT_FRAMES) this.list.firstChild.remove();
    setText(this.summary, `the last ${Math.min(this.ring.length, KEPT_FRAMES)} of ${count(this.total)} frames`);
    if (level) this.list.scrollTop = this.list.scrollHeight;
  }

  #wanted({ frame }) {
    if (QUIET.has(frame.type) && !this.pings.checked) return false;
    return this.filter.value === "all" || frame.conversation_id === this.currentId;
  }
}

/** What tells this frame from its neighbours; the whole of it is one press away. */
function gist(frame) {
  const { type, conversation_id, turn_id, seq, first_seq, epoch, metadata, ref, ...rest } = frame;
  return JSON.stringify(rest).slice(0, LINE_CHARS);
}

function row({ direction, frame, at }) {
  const place = frame.seq ? `${frame.first_seq ? `${frame.first_seq}–` : ""}${frame.seq}` : "";
  const line = h("summary", {},
    h("span", { class: "way", text: direction === "in" ? "↓" : "↑", title: direction === "in" ? "received" : "sent" }),
    h("time", { text: at.toISOString().slice(11, 23) }),
    h("span", { class: "of", text: frame.conversation_id?.slice(-ID_TAIL_CHARS) ?? "", title: frame.conversation_id ?? null }),
    h("b", { text: frame.type }),
    h("span", { class: "place", text: place }),
    h("span", { class: "raw", text: gist(frame) }));
  const details = h("details", {}, line);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(h("pre", { text: pretty(frame) }));
  });
  return h("li", { class: direction, data: { type: frame.type } }, details);
}
