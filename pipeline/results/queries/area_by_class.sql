-- Area of each class on each date: in the parcels that are known, and in the whole region with its 95 % interval.
WITH in_parcels AS (
    SELECT
        region, date, class_id, class_name,
        count(*) FILTER (is_dominant) AS parcel_count,  -- of which it is the dominant class
        round(sum(area_m2), 2) AS parcel_area_m2  -- threads add in any order: what is left is the same each time
    FROM parcels
    WHERE date BETWEEN $since AND $until AND state = 'known'
    GROUP BY ALL
),
in_region AS (
    SELECT region, date, class_id, class_name, area_m2, share, adjusted_area_m2, low_m2, high_m2
    FROM areas
    WHERE date BETWEEN $since AND $until AND district_id IS NULL
)
SELECT
    region, date, class_id, class_name, parcel_count, parcel_area_m2,
    area_m2, share, adjusted_area_m2, low_m2, high_m2  -- of the whole region, between parcels too
FROM in_parcels FULL JOIN in_region USING (region, date, class_id, class_name)
WHERE $class IS NULL OR class_name = $class
ORDER BY region, date, class_id
