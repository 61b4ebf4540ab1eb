-- Data gaps: of each parcel the dates on which it is known, and the most days on end without one; the longest first.
WITH dates AS (  -- a row a parcel and date: of a known parcel that of its dominant class
    SELECT region, parcel_id, date, state
    FROM parcels
    WHERE date BETWEEN $since AND $until AND is_dominant IS DISTINCT FROM false
),
ends AS (
    SELECT region, min(date) AS first_date, max(date) AS last_date
    FROM dates
    GROUP BY ALL
),
counted AS (
    SELECT
        region, parcel_id,
        count(*) FILTER (state = 'known') AS known_dates,
        count(*) FILTER (state = 'unknown') AS unknown_dates,
        count(*) FILTER (state = 'outside') AS outside_dates,
        max(date) FILTER (state = 'known') AS last_known_date,
        list_sort(coalesce(list(date) FILTER (state = 'known'), [])) AS known
    FROM dates
    GROUP BY ALL
)
SELECT
    region, parcel_id, known_dates, unknown_dates, outside_dates, last_known_date,
    list_max(list_transform(
        list_zip(list_prepend(first_date, known), list_append(known, last_date)), lambda pair: pair[2] - pair[1]
    )) AS longest_gap_days
FROM counted JOIN ends USING (region)
ORDER BY longest_gap_days DESC, region, parcel_id
