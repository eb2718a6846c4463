"""ADBC's driver for Flight SQL, against any server of it. protocol.py has its loop.

`again` asks the same text each time, which the driver prepares once; `anew` asks another text each time, as people do.
"""

from functools import partial
from itertools import count

import adbc_driver_flightsql.dbapi as flightsql

from clients.one_row import one_row
from clients.protocol import serve


class AdbcClient:
    def again(self, request):
        return one_row(request, lambda: partial(ask, connect(request), lambda: "SELECT 1"))

    def anew(self, request):
        numbers = count()
        return one_row(request, lambda: partial(ask, connect(request), lambda: f"SELECT 1 AS n{next(numbers)}"))


def connect(request):
    # A connection for each client, as one_row has them.
    return flightsql.connect(request["servers"][0], autocommit=True).cursor()


def ask(cursor, text):
    cursor.execute(text())
    return cursor.fetch_arrow_table()


if __name__ == "__main__":
    serve(AdbcClient())
