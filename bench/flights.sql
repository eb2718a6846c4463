SELECT
    DATE '2006-01-01' + (h % 1096)::INTEGER AS FL_DATE,
    ((h >> 8) % 271)::SMALLINT - 30::SMALLINT AS DEP_DELAY,
    ((h >> 16) % 291)::SMALLINT - 50::SMALLINT AS ARR_DELAY,
    ((h >> 24) % 600)::SMALLINT + 20::SMALLINT AS AIR_TIME,
    ((h >> 32) % 4900)::SMALLINT + 67::SMALLINT AS DISTANCE,
    (((h >> 40) % 1440) / 60)::FLOAT AS DEP_TIME,
    (((h >> 50) % 1440) / 60)::FLOAT AS ARR_TIME
FROM (SELECT hash(i) AS h FROM range({rows}) AS numbers(i)) AS hashed
