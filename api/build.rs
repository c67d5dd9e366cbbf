//! Generates the protobuf types with protox, so that no protoc is needed.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let protos = [
        "envoy/service/discovery/v3/discovery.proto",
        "istio/v1/auth/ca.proto",
        "weft/config/v1/config.proto",
        "weft/handover/v1/handover.proto",
        "weft/peer/v1/peer.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(protos.map(|p| root.join(p)), [root])?;
    let out = std::env::var("OUT_DIR")?;
    fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .bytes(".weft.config.v1")
        // For the dumps of what is compiled and in force (/debug/tables, /config).
        .type_attribute(
            ".weft.config.v1",
            "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]",
        )
        .compile_fds(set)?;
    Ok(())
}
