//! The JSON documents of an image, as readers that are written in Go take them.
//!
//! umoci, containerd, podman and Docker decode documents with Go's `encoding/json` into structures
//! of `image-spec/specs-go/v1`, and tools write documents that these readers accept. The types here
//! follow its rules (Go 1.25, `encoding/json`, `Unmarshal`):
//!
//! - A field that is missing or null has the empty value of its type. An element of a list and a
//!   value of a map can be null as well.
//! - The case of a field's name does not matter.
//! - Unknown fields are ignored.
//!
//! One rule is stricter: a field that occurs twice is an error, because readers disagree about
//! which one counts.
//!
//! No value is checked here. Texts can have any content, and a digest is parsed where it is used.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// An image index (image specification, image-index.md).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Index {
    /// The entries, not decoded yet. One that is malformed must not make the others unusable.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) manifests: Vec<Box<RawValue>>,
}

/// An image manifest (image specification, manifest.md).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    #[serde(deserialize_with = "or_empty")]
    pub(crate) config: Fields<Descriptor>,
    #[serde(deserialize_with = "structures")]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(rename = "artifacttype", deserialize_with = "or_empty")]
    pub(crate) artifact_type: String,
}

/// A descriptor (image specification, descriptor.md).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediatype", deserialize_with = "or_empty")]
    pub(crate) media_type: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) digest: String,
    /// Size of the blob in bytes.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) size: u64,
    #[serde(deserialize_with = "texts")]
    pub(crate) urls: Vec<String>,
    #[serde(deserialize_with = "text_map")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// The platform of an image. Only entries of an index have one.
    pub(crate) platform: Option<Fields<DescriptorPlatform>>,
    #[serde(rename = "artifacttype", deserialize_with = "or_empty")]
    pub(crate) artifact_type: String,
}

/// The platform in a descriptor. Each of its fields can be empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DescriptorPlatform {
    #[serde(deserialize_with = "or_empty")]
    pub(crate) os: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) architecture: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) variant: String,
}

/// An image configuration (image specification, config.md).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Configuration {
    #[serde(deserialize_with = "or_empty")]
    pub(crate) os: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) architecture: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) variant: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) config: Fields<Process>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) rootfs: Fields<RootFs>,
}

/// The field `rootfs` of an image configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    #[serde(rename = "type", deserialize_with = "or_empty")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "texts")]
    pub(crate) diff_ids: Vec<String>,
}

/// The field `config` of an image configuration: how to run the process.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    #[serde(deserialize_with = "texts")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "texts")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "texts")]
    pub(crate) env: Vec<String>,
    #[serde(rename = "workingdir", deserialize_with = "or_empty")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) user: String,
    #[serde(rename = "stopsignal", deserialize_with = "or_empty")]
    pub(crate) stop_signal: String,
    /// Docker's extension, which the image specification does not define.
    pub(crate) healthcheck: Value,
    /// The directories are the keys of a map, whose values have no meaning.
    #[serde(deserialize_with = "key_set")]
    pub(crate) volumes: Vec<String>,
    /// The ports are the keys of a map, whose values have no meaning.
    #[serde(rename = "exposedports", deserialize_with = "key_set")]
    pub(crate) exposed_ports: Vec<String>,
    #[serde(deserialize_with = "text_map")]
    pub(crate) labels: BTreeMap<String, String>,
}

/// Decodes null like a missing field.
fn or_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts: Vec<Option<String>> = or_empty(deserializer)?;
    Ok(texts.into_iter().map(Option::unwrap_or_default).collect())
}

fn text_map<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let map: BTreeMap<String, Option<String>> = or_empty(deserializer)?;
    Ok(map.into_iter().map(|(name, text)| (name, text.unwrap_or_default())).collect())
}

/// Decodes the keys of a map, sorted.
fn key_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: BTreeMap<String, IgnoredAny> = or_empty(deserializer)?;
    Ok(map.into_keys().collect())
}

fn structures<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    let list: Vec<Option<Fields<T>>> = or_empty(deserializer)?;
    Ok(list.into_iter().map(|element| element.unwrap_or_default().0).collect())
}

/// A structure whose field names match in any case. The names of `T` must be in lower case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor(PhantomData))
    }
}

struct FieldsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldsVisitor<T> {
    type Value = Fields<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(LowerCaseNames(map))).map(Fields)
    }
}

/// An object whose field names are changed to lower case.
///
/// Go also takes two characters outside of ASCII for `k` and `s`. No tool writes them.
struct LowerCaseNames<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for LowerCaseNames<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(mut name) = self.0.next_key::<String>()? else { return Ok(None) };
        name.make_ascii_lowercase();
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode<'a, T: Deserialize<'a>>(text: &'a str) -> T {
        let fields: Fields<T> =
            serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        fields.0
    }

    #[test]
    fn null_is_the_empty_value_of_each_field() {
        let names = "os architecture variant config rootfs created author history os.features";
        for name in names.split(' ') {
            let document: Configuration = decode(&format!(r#"{{"{name}":null}}"#));
            assert_eq!(format!("{document:?}"), format!("{:?}", Configuration::default()));
        }
        let names = "Entrypoint Cmd Env WorkingDir User StopSignal Healthcheck Volumes \
                     ExposedPorts Labels ArgsEscaped Shell OnBuild";
        for name in names.split_ascii_whitespace() {
            let process: Process = decode(&format!(r#"{{"{name}":null}}"#));
            assert_eq!(format!("{process:?}"), format!("{:?}", Process::default()), "{name}");
        }
        for name in ["type", "diff_ids"] {
            let root: RootFs = decode(&format!(r#"{{"{name}":null}}"#));
            assert_eq!(format!("{root:?}"), format!("{:?}", RootFs::default()), "{name}");
        }
        for name in ["config", "layers", "artifactType", "annotations", "subject"] {
            let manifest: Manifest = decode(&format!(r#"{{"{name}":null}}"#));
            assert_eq!(format!("{manifest:?}"), format!("{:?}", Manifest::default()), "{name}");
        }
        let names = "mediaType digest size urls annotations platform artifactType data";
        for name in names.split(' ') {
            let descriptor: Descriptor = decode(&format!(r#"{{"{name}":null}}"#));
            assert_eq!(format!("{descriptor:?}"), format!("{:?}", Descriptor::default()), "{name}");
        }
        for name in ["os", "architecture", "variant", "os.version", "os.features"] {
            let text = format!(r#"{{"platform":{{"{name}":null}}}}"#);
            let platform = decode::<Descriptor>(&text).platform.unwrap().0;
            assert_eq!(format!("{platform:?}"), format!("{:?}", DescriptorPlatform::default()));
        }
        assert!(decode::<Index>(r#"{"manifests":null,"annotations":null}"#).manifests.is_empty());
    }

    #[test]
    fn null_is_the_empty_value_of_an_element() {
        let process: Process = decode(
            r#"{"Cmd":["a",null],"Volumes":{"/data":null},"ExposedPorts":{"80/tcp":null,"1":{}},
                "Labels":{"label":null}}"#,
        );
        assert_eq!(process.cmd, ["a", ""]);
        assert_eq!(
            (process.volumes, process.exposed_ports),
            (vec!["/data".to_owned()], vec!["1".to_owned(), "80/tcp".to_owned()])
        );
        assert_eq!(
            process.labels.into_iter().collect::<Vec<_>>(),
            [("label".to_owned(), String::new())]
        );
        let manifest: Manifest = decode(r#"{"layers":[null,{"urls":[null]}]}"#);
        assert_eq!(manifest.layers[0].digest, "");
        assert_eq!(manifest.layers[1].urls, [""]);
        assert_eq!(decode::<Index>(r#"{"manifests":[null,7]}"#).manifests[1].get(), "7");
    }

    #[test]
    fn names_of_fields_match_in_any_case_and_keys_of_maps_keep_theirs() {
        let document: Configuration = decode(
            r#"{"OS":"linux","RootFS":{"Diff_IDs":["x"]},
                "Config":{"entrypoint":["/a"],"WORKINGDIR":"/b","labels":{"Key":"Value"}}}"#,
        );
        assert_eq!((document.os.as_str(), &document.rootfs.0.diff_ids[0][..]), ("linux", "x"));
        let process = document.config.0;
        assert_eq!((&process.entrypoint[0][..], &process.working_dir[..]), ("/a", "/b"));
        assert_eq!(process.labels["Key"], "Value");
        let manifest: Manifest = decode(r#"{"Config":{"MediaType":"m","Digest":"d","SIZE":3}}"#);
        let Fields(config) = manifest.config;
        assert_eq!((&config.media_type[..], &config.digest[..], config.size), ("m", "d", 3));
    }

    #[test]
    fn field_that_occurs_twice_or_has_another_type_is_refused() {
        for text in [
            r#"{"layers":[],"layers":[]}"#,
            r#"{"layers":[],"Layers":[]}"#,
            r#"{"layers":{}}"#,
            r#"{"layers":[{"size":-1}]}"#,
            r#"{"config":[]}"#,
            "[]",
            "null",
        ] {
            assert!(serde_json::from_str::<Fields<Manifest>>(text).is_err(), "{text}");
        }
    }
}
