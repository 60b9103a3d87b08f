"""Ranks that outlive each other: what is left of a plan's ranks regroups and goes on, without a restart.

One process, the launcher, hosts the store and holds a `Crew` (`crew.py`). It alone says who belongs together: it
declares *generations*, numbered from 1, each with a plan and the members that are its ranks. Whatever ends a rank, the
others give up the step they are in, and meet again in the next generation under a plan for those that are left.

A driver (a server, a benchmark) has two halves.

In the launcher, in one thread that lives as long as the crew:

    with Crew(job) as crew:                     # job.entry names the function of the other half
        crew.wait_ready()                       # CoverageLostError, RankFailedError: nothing can go on
        crew.send(rank, {"any": "JSON"})        # to a rank of the generation in force; any thread may send
        for event in crew.poll(0.05):           # Said, Lost, Declared, Ready, Slow, Switched (`events.py`)
            ...                                 # what a rank of an older generation says never arrives
        crew.rejoin()                           # start a process for a vacant home; it serves when it has loaded
        crew.migrate(moves)                     # `placement.migration.order.Move`s, in the background, in their order
        crew.generation, crew.plan, crew.ranks()

In each rank, `job.entry` is called with its Post:

    def work(post: Post) -> Report:
        member = Member(post)
        member.serve(lambda generation: ...)    # called anew in every generation; returns when the crew is closed
        return {}

The function that is given to `serve` steps until it is told to end. What it has in hand (`generation.py`):

    generation.number, .plan, .rank, .seat, .model, .network, .turns
    generation.keeps_cache                      # whether this rank's attention group is who it was: its KV cache holds
    generation.receive(timeout_s)               # what the launcher has sent to this rank in this generation
    generation.agree([1, 2])                    # the boundary of a step: every rank's numbers, [ranks][numbers]
    generation.say({"any": "JSON"})             # to the launcher, refused there once the generation has ended

`agree` is called by all ranks of the plan, once before each step, and switches to a new map of the experts where one
is due. Any of these calls and any wait for a peer may raise GenerationEndedError (`ended.py`) or PeerLost: let both
pass, `serve` takes them.
Ranks of one attention group may have got differently far in the step that was given up: the least of their counts of
cached tokens is what all of them hold (`generation.least_in_group`).
"""
