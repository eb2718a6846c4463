"""One sample: an operation of one contender, what it cost each process, and whether the right rows arrived."""

from operations import ARRIVED, GET
from processes import Failed, settled_rss
from workloads import FINGERPRINT


def sample(contender, operation, table, expected, verify):
    """Rows are counted every time; with `verify` their hash is compared too."""
    request = {"table": table, "to": ARRIVED} | operation.request
    stores_on = operation.stores_on
    if stores_on is None:
        request["verify"] = verify
    try:
        answer, processes = watched(contender, request, stores_on)
        check("rows", answer["rows"], expected["n"])
        if "hash" in answer:
            check("hash of the rows received", answer["hash"], expected["h"])
        if stores_on is not None:
            check_stored(contender, stores_on, expected, verify)
    finally:
        if stores_on is not None:
            contender.sql(stores_on, f"DROP TABLE IF EXISTS {ARRIVED}")
    return answer | {"processes": processes}


def watched(contender, request, stores_on=None):
    """The answer, and what it cost each process."""
    try:
        return costed(contender, request, stores_on)
    except OSError as error:
        raise Failed(f"a process of {contender.kind.title} has ended: {error}") from error


def costed(contender, request, stores_on):
    processes = contender.processes()
    before = settled_rss(processes)
    for process in processes.values():
        process.reset_peak_rss()
    cpu = {name: process.cpu_seconds() for name, process in processes.items()}
    answer = contender.ask(request)
    costs = {
        name: {
            "cpu_seconds": process.cpu_seconds() - cpu[name],
            "rss_before": before[name],
            "rss_peak": process.peak_rss(),
        }
        for name, process in processes.items()
    }
    for name, rss in settled_rss(processes).items():
        costs[name]["rss_after"] = rss
    keeper = None if stores_on is None else contender.keeper(stores_on)
    for name, cost in costs.items():
        # Where the operation stores a table, that table belongs to the level it is measured against.
        cost["rss_above"] = cost["rss_peak"] - cost["rss_after" if name == keeper else "rss_before"]
    return answer, costs


def slow_reader(contender, table, seconds):
    """What a server holds for a client that takes one batch a second and then leaves."""
    answer, processes = watched(contender, GET.request | {"operation": "slow", "table": table, "seconds": seconds})
    return {"rows": answer["rows"], "seconds": answer["seconds"], "processes": processes}


def one_row(contender, request):
    answer, processes = watched(contender, {"operation": "small"} | request)
    return answer | {"processes": processes}


def check_stored(contender, index, expected, verify):
    query = FINGERPRINT if verify else "SELECT count(*) AS n FROM {}"
    (found,) = contender.sql(index, query.format(ARRIVED))
    check("stored table", found, {key: expected[key] for key in found})


def check(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: found {found}, expected {expected}")
