/**
 * One WebSocket to `/chat` that comes back by itself: full jitter, `goaway`, the network's own on/offline events.
 *
 * It knows frames only as objects; which conversations are on it is the store's business. Handlers:
 * `onReady()` after each `welcome`, `onLost()`, `onFrame(frame)`, `onState()`, `onWire(direction, frame)`.
 */

const SUBPROTOCOL = "convobase.v1+json";
const BACKOFF_BASE_MS = 1000;
const BACKOFF_CAP_MS = 20_000;
const PING_EVERY_MS = 4000;
const PONG_WITHIN_MS = 12_000;
const WELCOME_WITHIN_MS = 15_000;
const RATE_BUCKET_MS = 250;
const RATE_BUCKETS = 12;
const DEFAULT_MAX_FRAME_BYTES = 65_536;

/** Counts events in a sliding window of three seconds, in constant memory. */
class Rate {
  #buckets = new Array(RATE_BUCKETS).fill(0);
  #slot = 0;

  #advance() {
    const slot = Math.floor(performance.now() / RATE_BUCKET_MS);
    const steps = Math.min(slot - this.#slot, RATE_BUCKETS);
    for (let i = 1; i <= steps; i += 1) this.#buckets[(slot - steps + i) % RATE_BUCKETS] = 0;
    this.#slot = slot;
  }

  add(n) {
    this.#advance();
    this.#buckets[this.#slot % RATE_BUCKETS] += n;
  }

  get perSecond() {
    this.#advance();
    return (this.#buckets.reduce((a, b) => a + b, 0) * 1000) / (RATE_BUCKETS * RATE_BUCKET_MS);
  }
}

export class Connection {
  constructor(url, handlers) {
    this.url = url;
    this.handlers = handlers;
    /** `connecting`, `connected`, `waiting` (see `retryAt`), `offline` or `refused` (a token is needed). */
    this.state = "connecting";
    this.retryAt = 0;
    this.welcome = null;
    this.reason = "";
    this.counters = { in: 0, out: 0, connects: 0, rttMs: null, tokens: new Rate() };
    this.socket = null;
    this.attempt = 0;
    this.afterGoaway = null;
    this.pinged = null;
    this.timer = null;
    this.encoder = new TextEncoder();
    setInterval(() => this.#beat(), PING_EVERY_MS);
    addEventListener("online", () => this.connectNow());
    addEventListener("offline", () => this.#drop("offline", "no network"));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.state === "waiting") this.connectNow();
    });
  }

  get ready() {
    return this.state === "connected";
  }

  get maxFrameBytes() {
    return this.welcome?.limits?.max_frame_bytes ?? DEFAULT_MAX_FRAME_BYTES;
  }

  connectNow() {
    if (this.state === "connected" || this.socket) return;
    clearTimeout(this.timer);
    this.#setState("connecting");
    const socket = new WebSocket(this.url, SUBPROTOCOL);
    this.socket = socket;
    // Handlers look at `this.socket` first: a socket that was given up may still speak.
    socket.onmessage = ({ data }) => this.socket === socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => this.socket === socket && this.#closed(code, reason);
    this.timer = setTimeout(() => {
      if (this.socket === socket && !this.ready) this.#drop("waiting", "no welcome in time");
    }, WELCOME_WITHIN_MS);
  }

  /** Drops the socket in the middle of whatever it carries; the usual reconnect follows. */
  cut() {
    if (this.socket) this.#drop("waiting", "cut by you");
  }

  /** Sends a frame; false when there is no connection (the caller sends again after `onReady`). */
  send(frame) {
    if (!this.ready || this.socket.readyState !== WebSocket.OPEN) return false;
    const text = JSON.stringify(frame);
    this.socket.send(text);
    this.counters.out += 1;
    this.handlers.onWire("out", frame);
    return true;
  }

  frameBytes(frame) {
    return this.encoder.encode(JSON.stringify(frame)).length;
  }

  #receive(text) {
    if (typeof text !== "string") return;
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      this.#drop("waiting", "a frame that is not JSON");
      return;
    }
    this.counters.in += 1;
    this.handlers.onWire("in", frame);
    if (frame.type === "token") this.counters.tokens.add(frame.seq - (frame.first_seq ?? frame.seq) + 1);
    if (frame.type === "pong") this.#pong(frame);
    else if (frame.type === "goaway") this.afterGoaway = { reason: frame.reason, ms: frame.reconnect_after_ms };
    else if (frame.type === "welcome" && !this.ready) this.#welcomed(frame);
    else this.handlers.onFrame(frame);
  }

  #welcomed(frame) {
    clearTimeout(this.timer);
    this.welcome = frame;
    this.attempt = 0;
    this.afterGoaway = null;
    this.counters.connects += 1;
    this.#setState("connected");
    this.handlers.onReady();
    this.#beat();
  }

  #beat() {
    if (!this.ready) return;
    if (this.pinged && performance.now() - this.pinged.at > PONG_WITHIN_MS && !document.hidden) {
      this.#drop("waiting", "no answer to a ping");
    } else if (!this.pinged) {
      this.pinged = { ref: `ping.${this.counters.out}`, at: performance.now() };
      this.send({ type: "ping", ref: this.pinged.ref });
    }
  }

  #pong(frame) {
    if (frame.ref !== this.pinged?.ref) return;
    this.counters.rttMs = performance.now() - this.pinged.at;
    this.pinged = null;
  }

  #drop(state, reason) {
    const socket = this.socket;
    this.socket = null;
    socket?.close(4000, "dropped by the page");
    this.#lost(state, reason);
  }

  #closed(code, reason) {
    this.socket = null;
    if (code === 4401 || code === 4408) this.#lost("refused", reason || "the gateway wants a token");
    else {
      if (code === 4429) this.attempt += 3; // over a connection limit: leave the others room
      this.#lost(navigator.onLine ? "waiting" : "offline", reason || closeWords(code), code);
    }
  }

  #lost(state, reason, code = 0) {
    clearTimeout(this.timer);
    this.welcome = null;
    this.pinged = null;
    this.counters.rttMs = null;
    this.reason = this.afterGoaway?.reason ?? reason;
    if (state === "waiting") this.#scheduleRetry();
    this.#setState(state);
    this.handlers.onLost(code);
  }

  #scheduleRetry() {
    const ceiling = Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.attempt);
    const delay = this.afterGoaway ? this.afterGoaway.ms : Math.random() * ceiling; // full jitter
    this.afterGoaway = null;
    this.attempt += 1;
    this.retryAt = performance.now() + delay;
    this.timer = setTimeout(() => this.connectNow(), delay);
  }

  #setState(state) {
    this.state = state;
    this.handlers.onState();
  }
}

function closeWords(code) {
  return { 1001: "the gateway is going away", 1006: "the connection broke", 1009: "a message was too large",
    1012: "the gateway restarts", 4429: "too many connections" }[code] ?? `closed with ${code}`;
}
