"""One-row queries: one after the other, or by several clients at once. `connect` answers a function that asks one."""

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles


def one_row(request, connect):
    clients = request.get("clients", 1)
    queries = [connect() for _ in range(clients)]
    for query in queries:
        query()
    start = time.perf_counter()
    if clients == 1:
        runs = [until(queries[0], count=request["count"])]
    else:
        end = start + request["seconds"]
        with ThreadPoolExecutor(clients) as pool:
            runs = list(pool.map(lambda query: until(query, end=end), queries))
    seconds = time.perf_counter() - start
    latencies = [latency for run, _ in runs for latency in run]
    errors = [error for _, run in runs for error in run]
    answer = {"rows": len(latencies), "seconds": seconds, "errors": len(errors), "first_error": (errors or [None])[0]}
    return answer | {"latencies_ms": distribution(latencies, seconds)}


def until(query, count=None, end=None):
    latencies, errors = [], []
    while len(latencies) + len(errors) < count if count else time.perf_counter() < end:
        start = time.perf_counter()
        try:
            query()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        else:
            latencies.append(time.perf_counter() - start)
    return latencies, errors


def distribution(latencies, seconds):
    if len(latencies) < 2:
        return {"count": len(latencies), "per_second": len(latencies) / seconds}
    percentiles = quantiles(latencies, n=100)
    of_interest = {"p50": percentiles[49], "p90": percentiles[89], "p99": percentiles[98], "max": max(latencies)}
    return {name: 1000 * value for name, value in of_interest.items()} | {
        "count": len(latencies),
        "per_second": len(latencies) / seconds,
    }
