//! What a runtime gives the plugin: environment and network configuration.

use std::{collections::HashMap, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{CniError, Code, VERSIONS};

/// The `CNI_*` variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`
    pub arguments: HashMap<String, String>,
}

impl Environment {
    /// Reads the variables through `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| get(name).unwrap_or_default();
        let arguments = get("CNI_ARGS")
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            arguments,
        }
    }

    /// A value of `CNI_ARGS`, empty if it is missing.
    pub fn argument(&self, key: &str) -> &str {
        self.arguments.get(key).map_or("", String::as_str)
    }
}

/// The network configuration, as far as it is weft's.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version that the result has to be in.
    pub cni_version: String,
    /// Where the agent's sockets and the records are.
    pub run_dir: PathBuf,
    /// Where objects come from while the agent is away.
    pub source: String,
    /// The node's name.
    #[serde(default)]
    pub node: String,
    /// The previous plugin's result.
    pub prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

impl NetworkConfig {
    /// Parses stdin.
    pub fn parse(input: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(input).map_err(|error| {
            CniError::new(
                Code::Decode,
                format!("the network configuration is no JSON: {error}"),
            )
        })?;
        let version = value["cniVersion"].as_str().unwrap_or_default().to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(CniError::new(
                Code::Version,
                format!(
                    "cniVersion {version:?} is not spoken, only {}",
                    VERSIONS.join(", ")
                ),
            ));
        }
        let wrong = |what: String| {
            let message = format!(
                "the network configuration of weft-cni is incomplete or wrong: {what}; it needs runDir and source"
            );
            CniError::new(Code::Config, message).in_version(&version)
        };
        let config: Self =
            serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        match &config.prev_result {
            Some(result) if !result.is_object() => Err(wrong("prevResult is no object".into())),
            _ => Ok(config),
        }
    }

    /// Fails if the configuration is of an older version than a command.
    pub(super) fn at_least(&self, version: &str, command: &str) -> Result<(), CniError> {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        if place(&self.cni_version) >= place(version) {
            return Ok(());
        }
        Err(CniError::new(
            Code::Version,
            format!(
                "{command} needs cniVersion {version}, the configuration says {}",
                self.cni_version
            ),
        ))
    }

    /// Container ids of the attachments that exist.
    pub(super) fn valid_attachments(&self) -> Option<Vec<String>> {
        let all = self.valid_attachments.as_ref()?;
        Some(
            all.iter()
                .map(|attachment| attachment.container_id.clone())
                .collect(),
        )
    }
}
