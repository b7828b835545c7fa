"""What the demo model says: sentences about the gateway that it runs in, with a place for what was asked.

`{topic}` is a few words of the question, `{name}` what the user said to be called. Every list is meant to be
drawn from; the order within a list means nothing. Some of it is deliberately not ASCII.
"""

from __future__ import annotations

OPENINGS = (
    "Good question. Let me think about **{topic}** out loud, one token at a time.",
    "**{topic}**? Gladly. I am the built-in demo model, take this as a friendly sketch, not as an expert's word.",
    "Let us look at **{topic}** from three sides: what it is, why it matters and what to try next.",
    "Ah, **{topic}**: a fine thing to ask a model that lives entirely inside your gateway.",
    "Here is a short tour of **{topic}**, served from your own machine, no key and no network needed.",
)

RETURNING = (
    "You asked about *{earlier}* earlier; this goes on from there. ",
    "Picking up where we were with *{earlier}*: ",
    "That fits well with *{earlier}*, which you said earlier. ",
)

_PARAGRAPHS = """
Every word that you see arrives as its own small frame. The gateway numbers the frames, writes them to a log and
only then moves on, so that nothing is lost when a train enters a tunnel or a laptop lid is closed.

Think of {topic} as a river rather than a lake 🌊: what counts is not how much water there is but that it keeps
flowing. A reader may step out, come back much later and still find the exact place where they left.

A conversation here is an append-only log, and every reader is a cursor on it. Your phone, your second browser tab
and a colleague's terminal are all simply cursors at different places; none of them slows down the others.

It is tempting to be naïve about {topic} and to hope that connections hold. They don't. So each frame carries a
sequence number, and a client that reconnects says the last one it has: *send me everything after that*.

When you press stop, the request to the model is closed at once, even before its first token. Nobody pays for words
that nobody reads: neither in money nor in milliseconds (usually fewer than 200 of them).

Slow readers are treated kindly. Instead of a queue that grows, they get fewer and larger slices, merged up to 64
KiB, and catch up when they can. Memory stays flat: about 0 bytes per missed token, give or take ±0.

Characters of every script pass through unharmed: a café in Zürich, 東京の朝, Привет, and emoji like 🧭 or 👩‍🚀. They
may be cut between reads on the way, but never in front of you.

If a model asks for a function, the gateway collects the pieces of its arguments and shows the call whole. You
answer from any device, and the stream goes on in the same turn: tokens, a call, then more tokens.

As for {topic}: small steps beat grand plans. Write down what you know, mark what you only believe, and let the next
question decide which of the two deserves your afternoon.
"""

PARAGRAPHS = tuple(" ".join(paragraph.split()) for paragraph in _PARAGRAPHS.split("\n\n"))

LISTS = (
    (
        "Three things to keep in mind:\n\n"
        "1. **Order**: frames come in sequence, without a gap and without a duplicate.\n"
        "2. **Ends**: every turn ends exactly once, with `done` or with an `error` that says why.\n"
        "3. **Resume**: a cursor is just a number, so `after=42` always means the same place."
    ),
    (
        "What you could try now:\n\n"
        "- open this conversation in a second tab and watch both move → together;\n"
        "- pull the network plug for a moment, and put it back;\n"
        "- send `/help` to see how to make me fail, stall or call a function."
    ),
    (
        "In short:\n\n"
        "| if… | then… |\n|---|---|\n"
        "| the socket drops | the client resumes after its last `seq` |\n"
        "| you change your mind | `cancel` closes the model's request |\n"
        "| I take too long | a time-out ends the turn, in plain words |"
    ),
    (
        "The whole idea fits into four lines:\n\n"
        '```json\n{"type": "message", "seq": 1}\n{"type": "token", "seq": 2, "content": "Hel"}\n'
        '{"type": "token", "seq": 3, "content": "lo"}\n{"type": "done", "seq": 4}\n```'
    ),
)

CLOSINGS = (
    "Shall we go deeper into one part of it?",
    "Ask me more, or send `/help` to see what else I can play.",
    "That is the gist. What would you like to know next?",
    "And that, *voilà*, is {topic} in a nutshell. 🌰",
)

GREETING = "Nice to meet you, **{name}**! "
BY_NAME = "{name}, here we go. "
REMEMBERED = "You said earlier that your name is **{name}**. I keep nothing myself: the gateway sent me our whole \
conversation again, and there it was."
FORGOTTEN = "You have not told me your name in this conversation. Say *my name is …* and ask me again."

BEFORE_CALL = (
    "Let me look that up for you. ",
    "One moment, I need some help from a function for that. ",
    "I can't know that by myself, so I ask for it: ",
)
AFTER_RESULT = "Here is what `{name}` told me:\n\n{result}\n\n"
AFTER_ERROR = "`{name}` could not help: {result}. "
AFTER_CALLS = (
    "So that answers it, and all of it happened within one turn. Is there more to find out?",
    "With that, I would call **{topic}** settled. Ask on if you like!",
)

BREAKING = "This answer begins well, and just when you have settled down to read it the connection "
STALLING = "This answer stops in the middle of a sentence, and what is missing will never "
UNKNOWN_FAILURE = "I don't know how to fail with `{code}`. I can do: {codes}."

HELP = """I am the **demo model** of this gateway: offline, free and obedient. Ask me anything, or steer me:

| send | and I will |
|---|---|
| `/echo TEXT` | stream TEXT back exactly |
| `/long N` | stream N tokens |
| `/slow` or `/fast` | talk slowly, or as fast as I can; they combine: `/fast /long 5000` |
| `/length` | stop as if my answer had become too long |
| `/call NAME {"json": "args"}` | call a function; several after each other are called in parallel |
| `/fail CODE` | fail: CODES |
| `/silent` | never say a word, so that you can try *stop* and time-outs |
| `/stall` | fall silent in the middle of my answer |
| `/help` | show this table |

Tell me your name and ask for it later. Offer me a function and mention what it does: I will call it."""
