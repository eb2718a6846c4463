-- TPC-H's lineitem at {rows} / 6,000,000 of scale 1: its 16 columns, types, ranges and dependencies, from hash(i) alone.
-- An order has 1 to 7 lines, so 28 rows are 7 orders; keys have TPC-H's gaps, and comments are 10 to 43 letters of its words.
SELECT
    (o // 8) * 32 + o % 8 + 1 AS l_orderkey,
    partkey AS l_partkey,
    (partkey + (h % 4)::BIGINT * (suppliers // 4 + 1)) % suppliers + 1 AS l_suppkey,
    line AS l_linenumber,
    quantity::DECIMAL(15, 2) AS l_quantity,
    (quantity * (90000 + (partkey // 10) % 20001 + 100 * (partkey % 1000)) / 100)::DECIMAL(15, 2) AS l_extendedprice,
    (((h >> 8) % 11)::INTEGER / 100)::DECIMAL(15, 2) AS l_discount,
    (((h >> 12) % 9)::INTEGER / 100)::DECIMAL(15, 2) AS l_tax,
    CASE WHEN shipped + transit > DATE '1995-06-17' THEN 'N' WHEN (h >> 16) % 2 = 0 THEN 'R' ELSE 'A' END AS l_returnflag,
    CASE WHEN shipped > DATE '1995-06-17' THEN 'O' ELSE 'F' END AS l_linestatus,
    shipped AS l_shipdate,
    ordered + 30 + ((h >> 17) % 61)::INTEGER AS l_commitdate,
    shipped + transit AS l_receiptdate,
    ['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'][1 + ((h >> 23) % 4)::INTEGER] AS l_shipinstruct,
    ['REG AIR', 'AIR', 'RAIL', 'SHIP', 'TRUCK', 'MAIL', 'FOB'][1 + ((h >> 25) % 7)::INTEGER] AS l_shipmode,
    substring(
        concat_ws(
            ' ',
            ['furiously', 'slyly', 'carefully', 'blithely', 'quickly', 'never', 'always', 'evenly'][1 + (c % 8)::INTEGER],
            ['special', 'pending', 'unusual', 'express', 'final', 'ironic', 'bold', 'regular'][1 + ((c >> 3) % 8)::INTEGER],
            ['foxes', 'ideas', 'theodolites', 'pinto beans', 'packages', 'deposits', 'requests', 'accounts', 'asymptotes',
             'dolphins', 'platelets', 'warhorses', 'courts', 'dugouts', 'pearls', 'sauternes'][1 + ((c >> 6) % 16)::INTEGER],
            ['sleep', 'wake', 'are', 'cajole', 'haggle', 'nag', 'use', 'boost'][1 + ((c >> 10) % 8)::INTEGER],
            ['about', 'above', 'across', 'after', 'against', 'along', 'among', 'around'][1 + ((c >> 13) % 8)::INTEGER],
            ['the', 'the silent', 'the even', 'the quiet'][1 + ((c >> 16) % 4)::INTEGER],
            ['instructions.', 'dependencies!', 'excuses?', 'patterns;', 'braids:', 'hockey players--', 'sentiments.',
             'realms.'][1 + ((c >> 18) % 8)::INTEGER]
        ),
        1 + ((c >> 24) % 24)::INTEGER,
        10 + ((c >> 32) % 34)::INTEGER
    ) AS l_comment
FROM (
    SELECT
        *,
        1 + ((h >> 32) % parts)::BIGINT AS partkey,
        1 + ((h >> 28) % 50)::INTEGER AS quantity,
        ordered + 1 + ((h >> 36) % 121)::INTEGER AS shipped,
        1 + ((h >> 44) % 30)::INTEGER AS transit
    FROM (
        SELECT
            o,
            line,
            hash(i) AS h,
            hash(-1 - i) AS c,
            DATE '1992-01-01' + (hash(o) % 2406)::INTEGER AS ordered,
            {rows} // 30 + 1 AS parts,
            {rows} // 600 + 1 AS suppliers
        FROM (
            SELECT i, (i // 28) * 7 + k AS o, i % 28 - k * (k + 1) // 2 + 1 AS line
            FROM (SELECT i, floor((sqrt(8 * (i % 28) + 1) - 1) / 2)::BIGINT AS k FROM range({rows}) AS numbers(i))
        )
    )
)
