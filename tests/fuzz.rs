//! Runs the oracle of every fuzz target on the target's seeds. The seeds are one input of each kind, and every input
//! that has ever failed. The fuzz targets themselves need a nightly compiler. They can start with a minimised corpus,
//! whose inputs reach nearly all code that earlier fuzzing has reached:
//!
//! ```text
//!   tar -xzf tests/fuzz/corpus.tar.gz -C tests/fuzz
//!   cargo +nightly fuzz run --fuzz-dir tests/fuzz frames tests/fuzz/corpus/frames tests/fuzz/seeds/frames
//! ```

#[path = "fuzz/oracles/mod.rs"]
mod oracles;

#[test]
fn every_seed_satisfies_its_oracle() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds");
    for (target, check) in oracles::ALL {
        let inputs: Vec<_> = std::fs::read_dir(format!("{seeds}/{target}")).expect("seeds").collect();
        assert!(!inputs.is_empty(), "{target} has seeds");
        for input in inputs {
            let path = input.expect("a seed").path();
            println!("{}", path.display()); // the test output includes this path if the oracle panics
            check(&std::fs::read(path).expect("a seed"));
        }
    }
}
