"""The comparison: the gateway and its peers at the same work, in the same run.

A *scenario* is one kind of work, an *entrant* a server that does it, a *regime* one setting of the work (so many
streams at such a rate). All entrants take turns within a round, and rounds are repeated, so that whatever the machine
does meanwhile happens to all of them. A figure is the median over the rounds, with the least and the greatest beside
it, and a ratio is taken within each round.
"""
