"""The peers that the gateway is compared with: each does the same work, written as its own documentation recommends.

    python -m benchmarks.peers                     the list
    python -m benchmarks.peers setup [NAME …]      installs what they need, which otherwise happens at the first start
    python -m benchmarks.peers NAME --port N --upstream URL
    python -m benchmarks.peers check [NAME …]      every token, in order, through each of them

What they cost is measured beside the gateway, in the same run: `python -m benchmarks`.

They are kept honest: nothing is left out that their documentation recommends, nothing is tuned that a reader of it
wouldn't find, and the code that they run is in `apps/` and `node/`, short enough to be judged. Versions are pinned, and
what the gateway has too is of the same version. What is needed is installed at the first start: Python environments in
the user's cache (`environments`), the npm packages in `node/node_modules`.
"""
