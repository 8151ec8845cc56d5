//! The committed inputs of the fuzz targets, run without a fuzzer: what was found once stays fixed (`fuzz/run` finds).

use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "there it is a library")]
mod fuzz;

#[test]
fn every_committed_input_keeps_every_property() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut inputs = 0;
    for folder in std::fs::read_dir(corpus).expect("the corpus is committed") {
        for file in std::fs::read_dir(folder.expect("readable").path()).expect("a folder of inputs")
        {
            let path = file.expect("readable").path();
            let bytes = std::fs::read(&path).expect("readable");
            println!("{}", path.display());
            // Every input for every target: what one of them survives may be hard on another.
            for target in fuzz::TARGETS {
                target(&bytes);
            }
            inputs += 1;
        }
    }
    assert!(inputs > fuzz::TARGETS.len(), "there are inputs");
}
