// One check of one client of npm's: node node.cjs CLIENT FEATURE STAGE, where STAGE is a JSON object. Its exit code is the outcome.
"use strict";
const assert = require("node:assert/strict");
const { tableFromIPC } = require("apache-arrow");
const { FlightSQLClient } = require("@gizmodata/gizmosql-client");
const { createFlightSqlClient } = require("@lakehouse-rs/flight-sql-client");

const [, , client, feature, told] = process.argv;
const stage = JSON.parse(told ?? "{}");

async function refused(call, word) {
  const error = await call().then(() => null, (error) => error);
  assert.ok(error, `went through, and should have failed with "${word}"`);
  assert.match(String(error.message).toLowerCase(), new RegExp(word));
}

const rows = (table) => table.toArray().map((row) => row.toJSON());

function gizmodata(options = {}) {
  const { host, port, user, password } = { ...stage, ...options };
  return new FlightSQLClient({ host, port, plaintext: true, username: user, password });
}

function lakehouse(options = {}) {
  const { host, port, user, password } = { ...stage, ...options };
  return createFlightSqlClient({ host, port, username: user, password, tls: false, headers: [] });
}

const SERIES = "SELECT i::INTEGER AS i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i";
const TYPES =
  "SELECT 12.34::DECIMAL(10, 2) AS d, DATE '2024-02-29' AS day, [1, 2]::INTEGER[] AS li, {'a': 1} AS st, 'x' AS t, NULL::INTEGER AS nothing";

function checkSeries(table) {
  assert.equal(table.numRows, 100000);
  assert.deepEqual(table.schema.fields.map((field) => field.name), ["i", "label"]);
  assert.equal(table.getChild("label").get(99999), "row 99999");
}

function checkTypes(table) {
  const [row] = table.toArray();
  assert.equal(row.t, "x");
  assert.equal(row.nothing, null);
  assert.deepEqual([...row.li], [1, 2]);
  assert.equal(row.st.a, 1);
  assert.equal(new Date(row.day).toISOString().slice(0, 10), "2024-02-29");
  assert.equal(String(table.getChild("d").type), "Decimal[10e+2]");
}

const CHECKS = {
  gizmodata: {
    login: async () => {
      const here = gizmodata();
      assert.equal((await here.execute("SELECT 1::INTEGER AS one")).toArray()[0].one, 1);
      await here.close();
      await refused(() => gizmodata({ password: "wrong" }).execute("SELECT 1"), "unauth|password|failed");
    },
    query: async () => checkSeries(await gizmodata().execute(SERIES)),
    "small queries": async () => {
      const here = gizmodata();
      for (let number = 0; number < 50; number++) {
        assert.equal((await here.execute(`SELECT ${number}::INTEGER AS n`)).toArray()[0].n, number);
      }
    },
    "DDL once": async () => {
      const here = gizmodata();
      await here.execute(`CREATE TABLE ${stage.table} (i INTEGER)`);
      await here.execute(`INSERT INTO ${stage.table} VALUES (1), (2)`);
      const table = await here.execute(`SELECT count(*)::INTEGER AS n FROM ${stage.table}`);
      assert.equal(table.toArray()[0].n, 2);
      await here.execute(`DROP TABLE ${stage.table}`);
    },
    catalog: async () => {
      const here = gizmodata();
      await here.execute(`CREATE TABLE ${stage.table} (i INTEGER)`);
      assert.ok((await here.getCatalogs()).includes("memory"));
      assert.ok((await here.getSchemas()).some((one) => one.schema === "main"));
      const tables = await here.getTables(undefined, "main", stage.table, ["TABLE"]);
      assert.deepEqual(tables.map((one) => one.tableName), [stage.table]);
      assert.ok((await here.getTableTypes()).includes("VIEW"));
      await here.execute(`DROP TABLE ${stage.table}`);
    },
    "server info": async () => {
      const info = await gizmodata().getSqlInfo([0, 1]);
      assert.equal(info.get(0), "Mallard");
      assert.equal(info.get(1), stage.version);
    },
    errors: async () => {
      const here = gizmodata();
      await refused(() => here.execute("SELEC 1"), "syntax error");
      await refused(() => here.execute("FROM no_such_table"), "no_such_table");
      assert.equal((await here.execute("SELECT 1::INTEGER AS one")).toArray()[0].one, 1);
    },
    types: async () => checkTypes(await gizmodata().execute(TYPES)),
    "reading role": async () => {
      const here = gizmodata({ user: stage.reader });
      await refused(() => here.execute("CREATE TABLE not_for_readers (i INTEGER)"), "role");
    },
  },
  lakehouse: {
    login: async () => {
      const here = await lakehouse();
      assert.equal(tableFromIPC(await here.query("SELECT 1::INTEGER AS one")).toArray()[0].one, 1);
      // With a wrong password the client panics, and its promise is never kept: nothing to check.
    },
    query: async () => checkSeries(tableFromIPC(await (await lakehouse()).query(SERIES))),
    "small queries": async () => {
      const here = await lakehouse();
      for (let number = 0; number < 50; number++) {
        assert.equal(tableFromIPC(await here.query(`SELECT ${number}::INTEGER AS n`)).toArray()[0].n, number);
      }
    },
    "DDL once": async () => {
      const here = await lakehouse();
      await here.query(`CREATE TABLE ${stage.table} (i INTEGER)`);
      await here.query(`INSERT INTO ${stage.table} VALUES (1), (2)`);
      const table = tableFromIPC(await here.query(`SELECT count(*)::INTEGER AS n FROM ${stage.table}`));
      assert.equal(table.toArray()[0].n, 2);
      await here.query(`DROP TABLE ${stage.table}`);
    },
    catalog: async () => {
      const here = await lakehouse();
      await here.query(`CREATE TABLE ${stage.table} (i INTEGER)`);
      const catalogs = rows(tableFromIPC(await here.getCatalogs()));
      assert.ok(catalogs.some((one) => one.catalog_name === "memory"));
      const schemas = rows(tableFromIPC(await here.getDbSchemas({ dbSchemaFilterPattern: "ma_n" })));
      assert.deepEqual(schemas.map((one) => one.db_schema_name), ["main"]);
      const filter = { dbSchemaFilterPattern: "main", tableNameFilterPattern: stage.table, tableTypes: ["TABLE"] };
      const tables = rows(tableFromIPC(await here.getTables(filter)));
      assert.deepEqual(tables.map((one) => one.table_name), [stage.table]);
      await here.query(`DROP TABLE ${stage.table}`);
    },
    "table schema": async () => {
      const here = await lakehouse();
      await here.query(`CREATE TABLE ${stage.table} (id BIGINT NOT NULL, name VARCHAR)`);
      const filter = { tableNameFilterPattern: stage.table, includeSchema: true };
      const [found] = rows(tableFromIPC(await here.getTables(filter)));
      const { schema } = tableFromIPC(found.table_schema);
      assert.deepEqual(schema.fields.map((field) => [field.name, field.nullable]), [["id", false], ["name", true]]);
      await here.query(`DROP TABLE ${stage.table}`);
    },
    errors: async () => {
      const here = await lakehouse();
      // The client keeps the server's words to itself.
      await refused(() => here.query("SELEC 1"), "failed to prepare");
      await refused(() => here.query("FROM no_such_table"), "failed to prepare");
      assert.equal(tableFromIPC(await here.query("SELECT 1::INTEGER AS one")).toArray()[0].one, 1);
    },
    types: async () => checkTypes(tableFromIPC(await (await lakehouse()).query(TYPES))),
    "reading role": async () => {
      const here = await lakehouse({ user: stage.reader });
      await refused(() => here.query("CREATE TABLE not_for_readers (i INTEGER)"), "failed to");
    },
  },
};

if (client === "list") {
  const listed = Object.entries(CHECKS).map(([name, checks]) => [name, Object.keys(checks)]);
  console.log(JSON.stringify(Object.fromEntries(listed)));
} else {
  CHECKS[client][feature]().then(
    () => process.exit(0),
    (error) => {
      console.error(error.message || error);
      process.exit(1);
    },
  );
}
