//! A worker process for the tests: `backstay-worker-test worker --run-dir DIR`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let run_dir = std::env::args_os().nth(3).unwrap_or_default();
    match backstay_worker::run(run_dir.as_ref()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
