/**
 * A second, independent reader of one conversation: a native EventSource with its own fold. It starts at the beginning
 * of the log, ends when no turn is open (the gateway answers 204 and the browser stops), and `wake` goes on from its
 * cursor when the next turn starts.
 */
import { Conversation } from "./conversation.js";
import { count, h, setAttribute, setText } from "./dom.js";

const SHOWN_TURNS = 3;

export class SecondReader {
  constructor(changed) {
    this.changed = changed;
    this.source = null;
    this.fold = null;
    this.events = 0;
    this.faults = 0;
  }

  /** A conversation that has no entry yet is unknown to the gateway: then the first `wake` opens the stream. */
  attach(thread) {
    this.detach();
    this.fold = new Conversation(thread.id);
    this.events = this.faults = 0;
    if (thread.seq > 0) this.#open();
  }

  detach() {
    this.source?.close();
    this.source = this.fold = null;
  }

  wake() {
    if (this.fold && (this.source?.readyState ?? EventSource.CLOSED) === EventSource.CLOSED) this.#open();
  }

  get state() {
    return ["connecting", "reading", "level"][this.source?.readyState ?? EventSource.CLOSED];
  }

  #open() {
    const { id, seq, epoch } = this.fold;
    const source = new EventSource(`/api/chat/stream?conversation_id=${id}&after=${epoch ? `${seq}.${epoch}` : seq}`);
    this.source = source;
    source.onmessage = ({ data }) => {
      if (this.source !== source) return;
      this.events += 1;
      this.#receive(JSON.parse(data));
      this.changed();
    };
    source.onopen = source.onerror = () => this.changed();
  }

  #receive(frame) {
    if (frame.type === "snapshot") this.fold.load(frame);
    else if (frame.type === "deleted") this.detach();
    else if (frame.seq && this.fold.apply(frame) === "gap") this.faults += 1;
  }
}

/** Shows the reader's text beside the page's own, turn by turn. */
export class SecondReaderView {
  constructor(root, reader) {
    this.reader = reader;
    this.status = h("p", { class: "muted reader-status" });
    this.turns = h("div", { class: "reader-turns" });
    this.rows = new Map();
    root.append(this.status, this.turns);
  }

  paint(thread) {
    const { fold, events, faults, state } = this.reader;
    if (!fold || !thread) return;
    const words = { connecting: "connecting", reading: "reading live", level: "level with the log, waiting for a turn" };
    setText(this.status, `${words[state]} · ${count(events)} events${faults ? ` · ${faults} order faults` : ""}`);
    const turns = thread.turns.slice(-SHOWN_TURNS);
    const wanted = new Set(turns.map((turn) => turn.id));
    for (const [id, row] of this.rows) {
      if (wanted.has(id) && row.conversationId === fold.id) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    for (const turn of turns) this.#paintTurn(turn, fold);
  }

  #paintTurn(turn, fold) {
    let row = this.rows.get(turn.id);
    if (!row) {
      row = { conversationId: fold.id, question: h("h3"), text: h("pre"), verdict: h("p", { class: "verdict" }) };
      row.element = h("article", { class: "reader-turn" }, row.question, row.text, row.verdict);
      this.rows.set(turn.id, row);
    }
    this.turns.append(row.element);
    const mine = turn.text;
    const theirs = fold.byId.get(turn.id)?.text ?? "";
    setText(row.question, turn.question?.content ?? "");
    if (row.text.textContent !== theirs) {
      row.text.textContent = theirs;
      row.text.scrollTop = row.text.scrollHeight;
    }
    const [verdict, words] = compare(mine, theirs);
    setAttribute(row.element, "data-verdict", verdict);
    setText(row.verdict, words);
  }
}

function compare(mine, theirs) {
  if (mine === "" && theirs === "") return ["empty", "no text yet"];
  if (mine === theirs) return ["same", `✓ the same ${count([...mine].length)} characters`];
  const behind = mine.length - theirs.length;
  const prefix = behind > 0 ? mine.startsWith(theirs) : theirs.startsWith(mine);
  if (!prefix) return ["different", "✗ the texts differ"];
  return ["catching-up", behind > 0 ? `the same so far, ${count(behind)} behind` : `the same so far, ${count(-behind)} ahead`];
}
