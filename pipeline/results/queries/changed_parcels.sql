-- Parcels that changed class: from what to what, between which dates, where.
SELECT
    region, parcel_id, district_id, area_m2, from_class_name, to_class_name,
    before_date,  -- last seen as it was
    since_date,  -- first seen changed
    confirmed_date
FROM changes LEFT JOIN parcel_geometry USING (region, parcel_id)
WHERE kind = 'class' AND since_date BETWEEN $since AND $until
    AND ($class IS NULL OR $class IN (from_class_name, to_class_name))
ORDER BY region, since_date, parcel_id
