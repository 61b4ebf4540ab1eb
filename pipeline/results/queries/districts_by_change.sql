-- Districts ranked by change: the share of the area of their parcels that changed class, and how many are less green than expected.
WITH changed AS (
    SELECT region, parcel_id, bool_or(kind = 'class') AS of_class, bool_or(kind = 'index') AS of_index
    FROM changes
    WHERE since_date BETWEEN $since AND $until
        AND ($class IS NULL OR $class IN (from_class_name, to_class_name))
    GROUP BY ALL
),
counted AS (
    SELECT
        region, district_id,  -- null: parcels in no district
        count(*) AS parcel_count,
        count(*) FILTER (of_class) AS changed_count,
        count(*) FILTER (of_index) AS fallen_count,
        round(sum(area_m2), 2) AS area_m2,
        round(coalesce(sum(area_m2) FILTER (of_class), 0), 2) AS changed_area_m2
    FROM parcel_geometry LEFT JOIN changed USING (region, parcel_id)
    GROUP BY ALL
)
SELECT rank() OVER (ORDER BY changed_area_m2 / area_m2 DESC) AS place, *, changed_area_m2 / area_m2 AS changed_share
FROM counted
ORDER BY place, region, district_id
