"""Damaged input, by the thousand: `make fuzz`. It ends in a result or in one clear error; nothing else is allowed.

    __main__.py   the command: kept seeds first, then new cases, on every core
    case.py       what a case is, how it is judged, how it is kept
    workers.py    processes that judge cases: ended where they hang, begun again where they died
    fence.py      no process of these writes outside of its folder
    damage.py     what is done to bytes, to text and to documents
    targets/      one file a target: what is made, what is damaged, what reads it
    seeds/        cases that failed once: replayed first, and by the tests
    answering.py  small models that answer, of every kind of task

    coverage_guided.py, packed_target.py, packed_files.py    ten packed files under atheris, which looks for new paths

A target is a module with

    make(draw)      the files of a new case, by name: a function of `draw`, a random.Random, alone
    run(folder)     read them, in that folder, which is the current one
    OUTS            what `run` writes: none of it may be there after an error
    SECONDS         the longest that a case may take
    start()         optional: what is made once, before any case
    SHARE           of all cases, in parts of the sum over all targets
"""
