/**
 * What the page remembers across reloads, in localStorage: one key per conversation (title, cursor, how far it was
 * read) and one per unacknowledged message. Separate keys, so that two tabs never overwrite each other's work. Where
 * storage is refused the page works on without it.
 */

const CONVERSATION = "convobase.c.";
const OUTBOX = "convobase.o.";

function write(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Storage is full or refused: the page then only forgets on reload.
  }
}

function readAll(prefix) {
  const found = new Map();
  try {
    for (let i = 0; i < localStorage.length; i += 1) {
      const key = localStorage.key(i);
      if (!key.startsWith(prefix)) continue;
      const value = parse(localStorage.getItem(key));
      if (value) found.set(key.slice(prefix.length), value);
    }
  } catch {
    // As above.
  }
  return found;
}

function parse(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

export const memory = {
  conversations: () => readAll(CONVERSATION),
  outbox: () => readAll(OUTBOX),
  saveConversation: (id, value) => write(CONVERSATION + id, value),
  saveUnsent: (messageId, value) => write(OUTBOX + messageId, value),

  /** Calls `changed(id, value)` when another tab saved a conversation; `value` is null when it removed one. */
  watch(changed) {
    addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(CONVERSATION)) changed(key.slice(CONVERSATION.length), newValue === null ? null : parse(newValue));
    });
  },
};

/** A fresh identifier; `crypto.randomUUID` is missing on plain http outside localhost. */
export function freshId(prefix) {
  const random = crypto.getRandomValues(new Uint8Array(12));
  return `${prefix}-${[...random].map((byte) => byte.toString(36).padStart(2, "0")).join("").slice(0, 20)}`;
}
