import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeSet;

/** Checks of Arrow's JDBC driver of Flight SQL: `java -cp DRIVER Jdbc.java list`, or FEATURE and what jdbc.py tells. */
public class Jdbc {
    interface Check {
        void run() throws Exception;
    }

    static String host, port, user, password, reader, version, table;

    static Connection connect(String user, String password) throws SQLException {
        return DriverManager.getConnection(
                "jdbc:arrow-flight-sql://" + host + ":" + port + "?useEncryption=false&user=" + user + "&password=" + password);
    }

    static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError("found " + found + ", expected " + expected);
        }
    }

    static void refused(String word, Check check) throws Exception {
        try {
            check.run();
        } catch (SQLException error) {
            if (error.toString().toLowerCase().contains(word)) {
                return;
            }
            throw error;
        }
        throw new AssertionError("went through, and should have failed with " + word);
    }

    /** All rows, as what getObject gives. */
    static List<List<Object>> rows(ResultSet result) throws SQLException {
        try (result) {
            List<List<Object>> rows = new ArrayList<>();
            int columns = result.getMetaData().getColumnCount();
            while (result.next()) {
                List<Object> row = new ArrayList<>();
                for (int column = 1; column <= columns; column++) {
                    row.add(result.getObject(column));
                }
                rows.add(row);
            }
            return rows;
        }
    }

    static List<List<Object>> rows(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return rows(statement.executeQuery(sql));
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    /** One column of a catalog's answer. */
    static List<String> column(ResultSet result, String name) throws SQLException {
        try (result) {
            List<String> values = new ArrayList<>();
            while (result.next()) {
                values.add(result.getString(name));
            }
            return values;
        }
    }

    static final Map<String, Check> CHECKS = new LinkedHashMap<>();

    static {
        CHECKS.put("login", () -> {
            connect(user, password).close();
            refused("wrong user or password", () -> connect(user, "wrong-password").close());
        });
        CHECKS.put("query", () -> {
            try (Connection connection = connect(user, password); Statement statement = connection.createStatement()) {
                ResultSet result =
                        statement.executeQuery("SELECT i, 'row ' || i AS label FROM range(100000) AS r(i) ORDER BY i");
                ResultSetMetaData about = result.getMetaData();
                equal(about.getColumnName(1) + about.getColumnTypeName(1), "iBIGINT");
                equal(about.getColumnName(2) + about.getColumnTypeName(2), "labelVARCHAR");
                List<List<Object>> found = rows(result);
                equal(found.size(), 100000);
                for (int row = 0; row < found.size(); row++) {
                    equal(found.get(row), Arrays.asList((long) row, "row " + row));
                }
            }
        });
        CHECKS.put("small queries", () -> {
            try (Connection connection = connect(user, password)) {
                for (int number = 0; number < 200; number++) {
                    equal(rows(connection, "SELECT " + number), List.of(List.of(number)));
                }
            }
        });
        CHECKS.put("parameters", () -> {
            String sql = "SELECT ?::INTEGER + 1, upper(?), ?::DECIMAL(10, 2), ?::DATE, ?::BOOLEAN, ?::DOUBLE, ?::VARCHAR";
            try (Connection connection = connect(user, password); PreparedStatement statement = connection.prepareStatement(sql)) {
                statement.setInt(1, 41);
                statement.setString(2, "it's");
                statement.setBigDecimal(3, new BigDecimal("12.50"));
                statement.setDate(4, Date.valueOf("2024-02-29"));
                statement.setBoolean(5, true);
                statement.setDouble(6, 0.25);
                statement.setNull(7, java.sql.Types.VARCHAR);
                List<Object> row = rows(statement.executeQuery()).get(0);
                equal(row.toString(), "[42, IT'S, 12.50, 2024-02-29, true, 0.25, null]");
            }
        });
        CHECKS.put("executemany", () -> {
            try (Connection connection = connect(user, password)) {
                run(connection, "CREATE TABLE " + table + " (i INTEGER, t VARCHAR)");
                try (PreparedStatement statement = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
                    for (int row = 0; row < 50; row++) {
                        statement.setInt(1, row);
                        statement.setString(2, "t" + row);
                        statement.addBatch();
                    }
                    statement.executeBatch();
                }
                String sql = "SELECT count(*), count(DISTINCT t), sum(i) FROM " + table;
                equal(rows(connection, sql).toString(), "[[50, 50, 1225]]");
                run(connection, "DROP TABLE " + table);
            }
        });
        CHECKS.put("DDL once", () -> {
            try (Connection connection = connect(user, password)) {
                run(connection, "CREATE TABLE " + table + " (i INTEGER)");
                try (Statement statement = connection.createStatement()) {
                    equal(statement.executeUpdate("INSERT INTO " + table + " VALUES (1), (2)"), 2);
                }
                equal(rows(connection, "SELECT count(*) FROM " + table).toString(), "[[2]]");
                run(connection, "DROP TABLE " + table);
                refused(table, () -> rows(connection, "FROM " + table));
            }
        });
        CHECKS.put("catalog", () -> {
            try (Connection connection = connect(user, password)) {
                run(connection, "CREATE TABLE " + table + " (i INTEGER, t VARCHAR)");
                equal(column(connection.getMetaData().getTables(null, "main", table, new String[] {"TABLE"}), "TABLE_NAME"), List.of(table));
                equal(column(connection.getMetaData().getTables(null, null, "no_such_table", null), "TABLE_NAME"), List.of());
                equal(column(connection.getMetaData().getColumns(null, null, table, null), "COLUMN_NAME"), List.of("i", "t"));
                equal(column(connection.getMetaData().getSchemas(), "TABLE_SCHEM").contains("main"), true);
                equal(column(connection.getMetaData().getCatalogs(), "TABLE_CAT").contains("memory"), true);
                run(connection, "DROP TABLE " + table);
            }
        });
        CHECKS.put("table schema", () -> {
            try (Connection connection = connect(user, password)) {
                run(connection, "CREATE TABLE " + table + " (i BIGINT NOT NULL, d DECIMAL(10, 2), h HUGEINT)");
                var about = connection.getMetaData();
                equal(column(about.getColumns(null, null, table, null), "TYPE_NAME"), List.of("BIGINT", "DECIMAL(10,2)", "HUGEINT"));
                equal(column(about.getColumns(null, null, table, null), "IS_NULLABLE"), List.of("NO", "YES", "YES"));
                run(connection, "DROP TABLE " + table);
            }
        });
        CHECKS.put("keys", () -> {
            try (Connection connection = connect(user, password)) {
                run(connection, "CREATE TABLE " + table + " (a INTEGER, b INTEGER, PRIMARY KEY (a, b))");
                run(connection, "CREATE TABLE of_" + table + " (x INTEGER, y INTEGER, FOREIGN KEY (x, y) REFERENCES " + table + " (a, b))");
                var about = connection.getMetaData();
                equal(new TreeSet<>(column(about.getPrimaryKeys(null, null, table), "COLUMN_NAME")), new TreeSet<>(List.of("a", "b")));
                equal(column(about.getImportedKeys(null, null, "of_" + table), "FKCOLUMN_NAME"), List.of("x", "y"));
                equal(column(about.getExportedKeys(null, null, table), "FKTABLE_NAME"), List.of("of_" + table, "of_" + table));
                run(connection, "DROP TABLE of_" + table);
                run(connection, "DROP TABLE " + table);
            }
        });
        CHECKS.put("server info", () -> {
            try (Connection connection = connect(user, password)) {
                equal(connection.getMetaData().getDatabaseProductName(), "Mallard");
                equal(connection.getMetaData().getDatabaseProductVersion(), version);
                equal(connection.getMetaData().getIdentifierQuoteString(), "\"");
            }
        });
        CHECKS.put("64 cursors", () -> {
            try (Connection connection = connect(user, password)) {
                List<Statement> statements = new ArrayList<>();
                List<ResultSet> results = new ArrayList<>();
                for (int number = 0; number < 64; number++) {
                    statements.add(connection.createStatement());
                    results.add(statements.get(number).executeQuery("SELECT " + number + " + i FROM range(3) AS r(i)"));
                }
                for (long number = 0; number < 64; number++) {
                    equal(rows(results.get((int) number)), List.of(List.of(number), List.of(number + 1), List.of(number + 2)));
                    statements.get((int) number).close();
                }
            }
        });
        CHECKS.put("cancel", () -> {
            try (Connection connection = connect(user, password); Statement statement = connection.createStatement()) {
                ResultSet result = statement.executeQuery("SELECT i FROM range(100000000000) AS r(i)");
                equal(result.next(), true);
                Thread other = new Thread(() -> {
                    try {
                        statement.cancel();
                    } catch (SQLException error) {
                        throw new IllegalStateException(error);
                    }
                });
                other.start();
                refused("cancel", () -> {
                    while (result.next()) {}
                });
                other.join();
            }
        });
        CHECKS.put("errors", () -> {
            try (Connection connection = connect(user, password)) {
                refused("nowhere_to_be_found", () -> rows(connection, "SELECT * FROM nowhere_to_be_found"));
                refused("syntax error", () -> rows(connection, "SELEC 1"));
                equal(rows(connection, "SELECT 1"), List.of(List.of(1)));
            }
        });
        CHECKS.put("types", () -> {
            String sql = "SELECT 12.34::DECIMAL(10, 2), DATE '2024-02-29', 'b'::ENUM ('a', 'b'), true, 1.5::DOUBLE, 7::UTINYINT, "
                    + "INTERVAL '3 days', {'a': 1, 'b': 'x'}, NULL::INTEGER";
            try (Connection connection = connect(user, password); Statement statement = connection.createStatement()) {
                equal(rows(connection, sql).toString(), "[[12.34, 2024-02-29, b, true, 1.5, 7, P3D PT0S, {\"a\":1,\"b\":\"x\"}, null]]");
                ResultSet result = statement.executeQuery("SELECT [1, NULL]::INTEGER[], '\\xAA'::BLOB, TIMESTAMP '2024-02-29 12:00:00.5'");
                result.next();
                equal(Arrays.asList((Object[]) result.getArray(1).getArray()), Arrays.asList(1, null));
                equal(result.getBytes(2)[0], (byte) 0xAA);
                equal(result.getTimestamp(3).toLocalDateTime().toString(), "2024-02-29T12:00:00.500");
                result.close();
            }
        });
        CHECKS.put("plain types", () -> {
            String sql = "SELECT sum(i), 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID, '101'::BIT, '{}'::JSON, '01:02:03+02'::TIMETZ, "
                    + "{'a': [1]}::VARIANT, union_value(k := 1), 3::BIGNUM FROM range(4) AS r(i)";
            try (Connection connection = connect(user, password)) {
                equal(
                        rows(connection, sql).toString(),
                        "[[6, a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11, 101, {}, 01:02:03+02, {\"a\":[1]}, {\"k\":1}, 3]]");
            }
        });
        CHECKS.put("reading role", () -> {
            try (Connection connection = connect(reader, password)) {
                equal(rows(connection, "SELECT 1"), List.of(List.of(1)));
                refused("role writer", () -> run(connection, "CREATE TABLE not_made (i INTEGER)"));
            }
        });
    }

    public static void main(String[] told) throws Exception {
        if (told[0].equals("list")) {
            System.out.println(String.join("\n", CHECKS.keySet()));
            return;
        }
        host = told[1];
        port = told[2];
        user = told[3];
        password = told[4];
        reader = told[5];
        version = told[6];
        table = told[7];
        CHECKS.get(told[0]).run();
    }
}
