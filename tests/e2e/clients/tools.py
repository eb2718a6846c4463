"""dbt (dbt-gizmosql) and SQLAlchemy (sqlalchemy-adbc), stock, at a server with a login and at one without."""

import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import pandas
import sqlalchemy
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import PASSWORD, USER, WITH_USERS, Server  # noqa: E402

FILES = {
    "dbt_project.yml": "{name: p, version: '1.0', profile: p}",
    "seeds/raw.csv": "k,v\n1,x\n2,y\n",
    "models/totals.sql": "{{ config(materialized='table') }} SELECT sum(k) AS total FROM {{ ref('raw') }}",
    "models/seen.sql": "{{ config(materialized='view') }} SELECT * FROM {{ ref('totals') }}",
    "models/grown.sql": "{{ config(materialized='incremental', unique_key='k') }} SELECT k, v FROM {{ ref('raw') }}",
    "models/tests.yml": "{version: 2, models: [{name: grown, columns: [{name: k, data_tests: [unique, not_null]}]}]}",
    "snapshots/kept.sql": "{% snapshot kept %}{{ config(target_schema='shop', unique_key='k', strategy='check', check_cols=['v']) }}"
    " SELECT * FROM {{ ref('raw') }}{% endsnapshot %}",
}


def dbt(server, directory):
    host, port = server.address
    login = f"user: {USER}, password: '{PASSWORD}'"
    profile = f"type: gizmosql, host: {host}, port: {port}, {login}, use_encryption: false, database: memory, schema: shop, threads: 2"
    for name, content in (FILES | {"profiles.yml": f"{{p: {{target: t, outputs: {{t: {{{profile}}}}}}}}}"}).items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    # What is there already is replaced, and grows.
    for more in ([], ["--exclude", "kept"]):
        command = [Path(sys.executable).parent / "dbt", "build", "--profiles-dir", ".", "--no-use-colors", *more]
        ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout
        assert " ERROR=0 " in ended.stdout, ended.stdout


def alchemy(server, login):
    host, port = server.address
    options = "&".join(["tls=false", *(f"{key}={value}" for key, value in login.items())])
    engine = sqlalchemy.create_engine(f"adbc+flightsql://{host}:{port}?{options}")
    tables = sqlalchemy.MetaData()
    people = sqlalchemy.Table(
        "people", tables, sqlalchemy.Column("id", sqlalchemy.Integer), sqlalchemy.Column("name", sqlalchemy.String)
    )
    tables.create_all(engine)
    with engine.begin() as connection:
        connection.execute(people.insert(), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT sum(id), uuid() FROM people")).fetchone()[0] == Decimal(3)
        assert connection.execute(sqlalchemy.select(people).where(people.c.id == 2)).fetchall() == [(2, "b")]
        connection.execute(people.delete())
        connection.rollback()
    columns = [column["name"] for column in sqlalchemy.inspect(engine).get_columns("people")]
    assert columns == ["id", "name"], columns
    frame = pandas.read_sql(text("SELECT * FROM people WHERE id = :id"), engine, params={"id": 1})
    assert frame.to_dict("list") == {"id": [1], "name": ["a"]}, frame
    assert pandas.DataFrame({"x": [1, 2]}).to_sql("framed", engine, index=False, if_exists="replace") == 2
    assert pandas.read_sql("SELECT sum(x) AS total FROM framed", engine)["total"][0] == Decimal(3)


def main():
    with tempfile.TemporaryDirectory() as directory:
        for flags, settings, login in ((["--auth"], WITH_USERS, {"username": USER, "password": PASSWORD.replace(" ", "%20")}), ([], {}, {})):
            server = Server(Path(directory), *flags, settings=settings)
            try:
                alchemy(server, login)
                print(f"SQLAlchemy over ADBC: passed, with {'a' if login else 'no'} login", flush=True)
                if login:
                    project = Path(directory) / "project"
                    project.mkdir()
                    dbt(server, project)
                    print("dbt: passed", flush=True)
            finally:
                server.stop()


main()
