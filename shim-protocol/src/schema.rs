//! The JSON Schemas of the contract, as they are in the directory `schema/` of this crate.
//!
//! The schemas are generated from the types and their docs (feature `schema`). A test compares the
//! files with a new generation, and with the variable `UPDATE_SCHEMA=1` it rewrites them.

/// JSON Schema of [`BoxConfig`](crate::BoxConfig), which `a3s-box-shim --print-schema` prints.
pub const BOX_CONFIG: &str = include_str!("../schema/box-config.json");

/// JSON Schema of [`Event`](crate::Event).
pub const EVENT: &str = include_str!("../schema/event.json");

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;

    fn check<T: JsonSchema>(file: &str, checked_in: &str) {
        let mut generated = serde_json::to_string_pretty(&schemars::schema_for!(T)).unwrap();
        generated.push('\n');
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            let path = format!("{}/schema/{file}", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, &generated).unwrap();
        } else {
            assert_eq!(generated, checked_in, "run the tests with UPDATE_SCHEMA=1, then review");
        }
    }

    #[test]
    fn schema_file_of_the_config_is_current() {
        check::<crate::BoxConfig>("box-config.json", super::BOX_CONFIG);
    }

    #[test]
    fn schema_file_of_the_events_is_current() {
        check::<crate::Event>("event.json", super::EVENT);
    }
}
