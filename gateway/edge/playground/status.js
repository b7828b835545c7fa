/** The head of the page: how the connection is, and its counters. Drawn a few times a second, not per frame. */
import { byId, count, setAttribute, setText } from "./dom.js";

const TICK_MS = 250;

export class StatusBar {
  constructor(connection, store, announce) {
    Object.assign(this, { connection, store, announce });
    this.lastState = "";
    byId("status").addEventListener("click", () => connection.connectNow());
    byId("cut").addEventListener("click", () => connection.cut());
    setInterval(() => this.paint(), TICK_MS);
  }

  paint() {
    const { connection, store } = this;
    const { state, counters } = connection;
    setAttribute(byId("status"), "data-state", state);
    setText(byId("status-text"), this.#words());
    setAttribute(byId("status"), "title", state === "connected" ? `${connection.welcome.connection_id}, connection ${counters.connects} of this page` : `${connection.reason}. Press to connect now.`);
    setText(byId("connection-id"), connection.welcome?.connection_id ?? "");
    setText(byId("count-frames"), `${count(counters.in)} ↓ ${count(counters.out)} ↑`);
    setText(byId("count-rate"), count(Math.round(counters.tokens.perSecond)));
    setText(byId("count-rtt"), counters.rttMs === null ? "–" : `${counters.rttMs < 10 ? counters.rttMs.toFixed(1) : Math.round(counters.rttMs)} ms`);
    setText(byId("count-order"), store.orderFaults === 0 ? "✓" : `✗ ${store.orderFaults}`);
    byId("cut").disabled = state !== "connected";
    const streaming = store.list.filter((thread) => thread.state === "streaming").length;
    setText(byId("socket-note"), streaming > 1 ? `${streaming} answers stream on one socket` : "All of them share one WebSocket");
    this.#announce(state);
  }

  #words() {
    const { state, retryAt } = this.connection;
    if (state === "connected") return "Connected";
    if (state === "connecting") return "Connecting";
    if (state === "offline") return "Offline";
    if (state === "refused") return "Unauthorized";
    return `Reconnecting in ${Math.max(Math.ceil((retryAt - performance.now()) / 1000), 0)} s`;
  }

  #announce(state) {
    if (state === this.lastState) return;
    if (this.lastState === "connected") this.announce("The connection is lost. It comes back by itself.");
    else if (state === "connected" && this.connection.counters.connects > 1) this.announce("Connected again.");
    this.lastState = state;
  }
}
