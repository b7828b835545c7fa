/** The two HTTP requests of the page; everything else goes over the WebSocket. */

const path = (id) => `/api/conversations/${id}`;

/** The fold of a conversation; null when the gateway knows none of that id; undefined when it can't be asked now. */
export async function fetchHistory(id) {
  try {
    const response = await fetch(path(id));
    if (response.status === 404) return null;
    return response.ok ? await response.json() : undefined;
  } catch {
    return undefined;
  }
}

/** Erases a conversation. Returns what went wrong, in words, or null. */
export async function eraseConversation(id) {
  try {
    const response = await fetch(path(id), { method: "DELETE" });
    return response.ok ? null : `HTTP ${response.status}`;
  } catch (error) {
    return error.message;
  }
}
