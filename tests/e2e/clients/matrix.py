"""Clients, features, and what came of each pair: the table that docs/clients.md shows.

A feature that a client has is a check, which passes or not. One that it has not is named with the reason.
"""

from dataclasses import dataclass, field

# In the order of the table, each with what a check of it has to show.
FEATURES = {
    "login": "user and password are taken, a wrong password is refused",
    "query": "rows arrive in order, complete, with names and types",
    "small queries": "a one-row query, many times over one connection",
    "parameters": "values bound to `?` come back as they were sent",
    "executemany": "one statement for many rows of parameters, each once",
    "DDL once": "CREATE, INSERT and DROP by the ordinary call for a query run exactly once",
    "transactions": "autocommit off: commit keeps, rollback takes back",
    "ingest": "Arrow into tables: create, append, replace, create or append, temporary, in a schema, in a transaction",
    "data frame out": "a query as the client's data frame",
    "data frame in": "the client's data frame as a table",
    "catalog": "catalogs, schemas, tables and columns are listed and filtered",
    "table schema": "the Arrow schema of one table, with NOT NULL",
    "keys": "primary and foreign keys",
    "server info": "name, version and abilities",
    "cancel": "a running query is ended from another thread",
    "64 cursors": "64 cursors at once, each with its own answer",
    "errors": "a wrong statement is an error that names what is wrong, and the connection goes on",
    "types": "DECIMAL, TIMESTAMPTZ, INTERVAL, LIST, STRUCT, MAP, BLOB, DATE, TIME, ENUM arrive value for value",
    "plain types": "HUGEINT, UUID, ENUM, BIT, JSON, TIMETZ without extension types, and with them where the session or a header asks",
    "reading role": "a reader reads and cannot write",
}


@dataclass
class Client:
    name: str
    version: str
    language: str
    snippet: str
    about: str = ""
    absent: dict = field(default_factory=dict)
    checks: dict = field(default_factory=dict)

    def check(self, feature):
        """The decorated function shows that the client has this feature at a server; it raises where it has not."""
        assert feature in FEATURES, feature

        def register(function):
            self.checks[feature] = function
            return function

        return register

    def lacks(self, why, *features):
        for feature in features:
            assert feature in FEATURES, feature
            self.absent[feature] = why
