/** Puts the page together: one connection, one store, and views that paint at most once per animation frame. */
import { ChatView } from "./chat.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { byId, framePainter, h, setAttribute, setText } from "./dom.js";
import { Sidebar } from "./sidebar.js";
import { SecondReader, SecondReaderView } from "./sse.js";
import { StatusBar } from "./status.js";
import { Store } from "./store.js";
import { Wire } from "./wire.js";

const NOTICE_MS = 6000;
const MAX_NOTICES = 4;
const SPOKEN_CHARS = 300;

const store = new Store({ changed, notice, removed });
const wire = new Wire(byId("wire"));
const connection = new Connection(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/chat`, {
  onReady: () => store.ready(),
  onLost: (code) => store.lost(code),
  onFrame: (frame) => store.receive(frame),
  onState: () => status.paint(),
  onWire: (direction, frame) => {
    wire.record(direction, frame);
    paint();
  },
});
store.connection = connection;
const status = new StatusBar(connection, store, announce);

const reader = new SecondReader(() => paint());
const readerView = new SecondReaderView(byId("reader"), reader);
const sidebar = new Sidebar(byId("conversations"), {
  select: (id) => {
    show(id);
    composer.focus();
  },
  remove: (thread) => store.remove(thread),
});
const chat = new ChatView(
  { scroller: byId("scroller"), log: byId("log"), welcome: byId("welcome"), jump: byId("jump") },
  {
    cancel: (turnId) => store.cancel(store.current, turnId),
    answer: (callId, answer) => store.answer(store.current, callId, answer),
    again: (text) => send(text, { onBusy: "queue", tools: null }),
    retry: (pending) => store.retry(store.current, pending),
    discard: (pending) => store.discard(store.current, pending),
  },
);
const composer = new Composer({
  send,
  stop: () => {
    const running = store.current.running;
    if (running) store.cancel(store.current, running.id);
  },
});

const paint = framePainter(() => {
  const thread = store.current;
  const list = store.list;
  sidebar.paint(list, thread.id);
  chat.paint(thread);
  composer.paint(thread);
  readerView.paint(thread);
  wire.paint(thread.id);
  const unread = list.filter((other) => other !== thread && other.unread).length;
  byId("other-unread").hidden = unread === 0;
  setText(byId("other-unread"), String(unread));
  const title = `${unread ? `(${unread}) ` : ""}${thread.title || "Convobase playground"}`;
  if (document.title !== title) document.title = title;
});

function send(text, options) {
  chat.following = true;
  return store.send(store.current, text, options);
}

function show(id) {
  const thread = store.select(id);
  history.replaceState(null, "", `#${thread.id}`);
  if (!byId("reader-panel").hidden) reader.attach(thread);
  drawer(false);
}

/** Called by the store after each change; `frame` is what caused it, when one did. */
function changed(thread, frame) {
  paint();
  if (thread.id !== store.currentId || !frame) return;
  if (frame.type === "message") reader.wake();
  const title = thread.title || "this conversation";
  if (frame.type === "done") announce(`Answer: ${thread.byId.get(frame.turn_id)?.text.slice(0, SPOKEN_CHARS)}`);
  else if (frame.type === "error" && frame.seq) announce(`Failed: ${frame.error.message}`);
  else if (frame.type === "function_call" && frame.runs !== "gateway") announce(`${frame.name} waits for your answer in ${title}.`);
}

function removed(thread) {
  if (thread.id === store.currentId) {
    const next = store.list[0];
    if (next) show(next.id);
    else start();
  }
  paint();
}

function start() {
  show(store.create().id);
}

function notice(text, kind) {
  const element = h("p", { class: `notice ${kind}`, text });
  byId("notices").append(element);
  while (byId("notices").childElementCount > MAX_NOTICES) byId("notices").firstChild.remove();
  setTimeout(() => element.remove(), NOTICE_MS);
}

function announce(text) {
  byId("announcer").textContent = text;
}

/** On narrow screens the list is a drawer over the chat. */
function drawer(open) {
  byId("shell").classList.toggle("drawer-open", open);
  setAttribute(byId("open-sidebar"), "aria-expanded", open);
  if (open) byId("new-conversation").focus();
}

function togglePanel(name) {
  const panel = byId(`${name}-panel`);
  panel.hidden = !panel.hidden;
  setAttribute(byId(`toggle-${name}`), "aria-pressed", !panel.hidden);
  byId("panels").hidden = byId("reader-panel").hidden && byId("wire-panel").hidden;
  if (name === "wire") {
    wire.open = !panel.hidden;
    if (wire.open) wire.redraw();
  } else if (panel.hidden) reader.detach();
  else reader.attach(store.current);
  paint();
}

byId("new-conversation").addEventListener("click", () => {
  start();
  composer.focus();
});
byId("open-sidebar").addEventListener("click", () => drawer(true));
byId("close-sidebar").addEventListener("click", () => drawer(false));
byId("scrim").addEventListener("click", () => drawer(false));
for (const name of ["reader", "wire"]) {
  byId(`toggle-${name}`).addEventListener("click", () => togglePanel(name));
  document.querySelector(`[data-close="${name}"]`).addEventListener("click", () => togglePanel(name));
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape") drawer(false);
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.code === "KeyN") start();
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const list = store.list;
    const at = list.indexOf(store.current) + (event.key === "ArrowDown" ? 1 : -1);
    if (list[at]) show(list[at].id);
  } else return;
  event.preventDefault();
  composer.focus();
});
addEventListener("hashchange", () => {
  const id = hashId();
  if (id && id !== store.currentId) show(id);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && store.current) store.markRead(store.current);
});

function hashId() {
  const id = location.hash.slice(1);
  return /^[A-Za-z0-9_.-]{1,128}$/.test(id) ? id : null;
}

const first = hashId() ?? store.list[0]?.id;
if (first) show(first);
else start();
if (matchMedia("(min-width: 48rem)").matches) composer.focus();
connection.connectNow();
