//! Generates the gRPC services with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/weft/echo/v1/echo.proto",
        "proto/grpc/health/v1/health.proto",
    ];
    let set = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
