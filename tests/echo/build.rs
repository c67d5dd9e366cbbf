//! Generates the gRPC echo service with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(["proto/weft/echo/v1/echo.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
