//! The CNI plugin's program: environment and stdin in, JSON on stdout.

use std::{io::Read, process::ExitCode};

use weft_cni::plugin::{Environment, run};

fn main() -> ExitCode {
    let environment = Environment::read(|name| std::env::var(name).ok());
    let mut input = String::new();
    if let Err(error) = std::io::stdin().read_to_string(&mut input) {
        eprintln!("weft-cni: can't read the network configuration from stdin: {error}");
    }
    match run(&environment, &input) {
        Ok(Some(output)) => {
            println!("{output}");
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", error.to_json());
            ExitCode::FAILURE
        }
    }
}
