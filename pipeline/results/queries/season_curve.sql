-- Season curve of a parcel: each index as observed, and smoothed and filled, and the class of each date.
WITH observed AS (
    SELECT region, date, index_name, state, mean, p10, p90
    FROM indices
    WHERE parcel_id = $parcel AND date BETWEEN $since AND $until
),
curve AS (
    SELECT region, date, index_name, value
    FROM series
    WHERE parcel_id = $parcel AND date BETWEEN $since AND $until
),
classes AS (
    SELECT region, date, class_name
    FROM parcels
    WHERE parcel_id = $parcel AND date BETWEEN $since AND $until AND is_dominant
)
SELECT region, index_name, date, state, mean AS observed, p10, p90, value AS curve, class_name
FROM observed FULL JOIN curve USING (region, date, index_name) LEFT JOIN classes USING (region, date)
ORDER BY region, index_name, date
