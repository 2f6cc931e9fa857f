-- One row for each adult of an OMOP CDM 5.4 database with at least one blood pressure: age, sex, the
-- mean systolic pressure, the number of visits, and whether the patient ever had a myocardial
-- infarction. Written for PostgreSQL; put your schema's name before the tables where it is not in
-- the account's search_path. The ids are OMOP's standard concepts. What stands in a row follows from
-- rows of its own person alone: no LIMIT, no window over several people, and a mean of numeric, as the
-- last digit of a mean of doubles hangs on the order in which the database comes to them.
WITH pressure AS (
  SELECT person_id, avg(value_as_number::numeric) AS systolic
  FROM measurement
  WHERE measurement_concept_id = 3004249            -- systolic blood pressure
    AND unit_concept_id = 8876                      -- mmHg
    AND value_as_number BETWEEN 40 AND 300
  GROUP BY person_id
),
visits AS (
  SELECT person_id, count(*) AS visits FROM visit_occurrence GROUP BY person_id
),
infarction AS (
  SELECT DISTINCT condition_occurrence.person_id
  FROM condition_occurrence
  JOIN concept_ancestor ON descendant_concept_id = condition_concept_id
  WHERE ancestor_concept_id = 4329847               -- myocardial infarction and all below it
)
SELECT
  person.person_id,
  -- A fixed year, so that the same records give the same rows on any day.
  2025 - person.year_of_birth AS age,
  CASE person.gender_concept_id WHEN 8507 THEN 'male' WHEN 8532 THEN 'female' END AS sex,
  pressure.systolic,
  coalesce(visits.visits, 0) AS visits,
  CASE WHEN infarction.person_id IS NULL THEN 0 ELSE 1 END AS infarction,
  coalesce(consent.value_as_string, 'none') AS research_consent
FROM person
JOIN pressure USING (person_id)
LEFT JOIN visits USING (person_id)
LEFT JOIN infarction USING (person_id)
-- Where a hospital notes consent differs; here, as an observation of its own local concept.
LEFT JOIN observation AS consent
  ON consent.person_id = person.person_id AND consent.observation_concept_id = 2000000001
WHERE 2025 - person.year_of_birth >= 18
ORDER BY person.person_id
