//! Tables, verdicts and pictures from the results on disk, and their places in the documentation.

mod picture;
mod tables;
mod verdicts;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use idleguard_harness::project;

use crate::{
    copies::Copies,
    correctness::Cell,
    cost,
    cpu::Cost,
    latency::Latency,
    pools,
    results::{self, Section, Setting},
    scale,
};

/// Everything that has been measured.
pub struct Everything {
    copies: Option<Section<Vec<Copies>>>,
    correctness: Option<Section<Vec<Cell>>>,
    cost: Option<Section<Vec<cost::Cost>>>,
    cpu: Option<Section<Vec<Cost>>>,
    latency: Option<Section<Vec<Latency>>>,
    pools: Option<Section<pools::Pools>>,
    scale: Option<Section<Vec<scale::Load>>>,
}

impl Everything {
    fn load(directory: &Path) -> Result<Self> {
        Ok(Self {
            copies: results::load(directory, "copies")?,
            correctness: results::load(directory, "correctness")?,
            cost: results::load(directory, "cost")?,
            cpu: results::load(directory, "cpu")?,
            latency: results::load(directory, "latency")?,
            pools: results::load(directory, "pools")?,
            scale: results::load(directory, "scale")?,
        })
    }
}

/// Draws what there is into `directory`; with `documentation`, also into the project's README, `docs/benchmarks.md` and `docs/lanes.md`.
pub fn write(directory: &Path, documentation: bool) -> Result<()> {
    let all = Everything::load(directory)?;
    let mut blocks: Vec<(&str, String)> = Vec::new();
    if let Some(section) = &all.correctness {
        picture::failures(&directory.join("failures.svg"), &section.results)?;
        picture::connections(&directory.join("connections.svg"), &section.results)?;
        let about = about(&section.setting);
        blocks.push(("summary", format!("{}\n{about}\n", tables::summary(&section.results))));
        blocks.push(("failures", format!("{}{}", tables::failures(&section.results), tables::kinds(&section.results))));
        blocks.push(("connections", tables::connections(&section.results)));
    }
    if let Some(section) = &all.cost {
        blocks.push(("cost", tables::cost(&section.results)));
    }
    if let Some(section) = &all.cpu {
        picture::cpu(&directory.join("cpu.svg"), &section.results)?;
        blocks.push(("cpu", tables::cpu(&section.results)));
    }
    if let Some(section) = &all.latency {
        blocks.push(("latency", tables::latency(&section.results)));
    }
    if let Some(section) = &all.scale {
        picture::scale(&directory.join("scale.svg"), &section.results)?;
        blocks.push(("scale", tables::scale(&section.results)));
    }
    if let Some(section) = &all.copies {
        blocks.push(("copies", format!("{}\n{}\n", tables::copies(&section.results), about(&section.setting))));
    }
    if let Some(section) = &all.pools {
        blocks.push(("pools", tables::pools(&section.results)));
    }
    blocks.push(("verdicts", verdicts::table(&all)));
    blocks.push(("settings", settings(&all)));
    let text: Vec<_> = blocks.iter().map(|(name, text)| format!("## {name}\n\n{text}")).collect();
    fs::write(directory.join("results.md"), format!("# What `make bench` measured\n\n{}", text.join("\n")))?;
    if documentation {
        for file in ["README.md", "docs/benchmarks.md", "docs/lanes.md"] {
            replace_blocks(&project::root().join(file), &blocks)?;
        }
        if let Some(section) = &all.cost {
            let readme = project::root().join("README.md");
            let text = fs::read_to_string(&readme)?;
            fs::write(
                readme,
                within(&text, "<!-- cost: line -->", "<!-- /cost -->", &tables::cost_line(&section.results)),
            )?;
        }
    }
    Ok(())
}

/// One line: where and when.
fn about(setting: &Setting) -> String {
    let quick = if setting.quick { "**A quick look, no result.** " } else { "" };
    format!(
        "{quick}{}; {} cores of {}, {} GB, Linux {}; Envoy {}, HAProxy {}, nginx {}, idleguard {}; load average before: {}.",
        setting.date,
        setting.cores,
        setting.processor,
        (setting.memory_mb + 512) / 1024,
        setting.kernel,
        setting.envoy,
        setting.haproxy,
        setting.nginx,
        setting.idleguard,
        setting.load_average
    )
}

/// Of each section that has been measured: its name, where and when, and the seconds that it took.
fn settings_of(all: &Everything) -> Vec<(&'static str, &Setting, u64)> {
    fn of<'a, T>(name: &'static str, section: &'a Option<Section<T>>) -> Option<(&'static str, &'a Setting, u64)> {
        section.as_ref().map(|section| (name, &section.setting, section.took_s))
    }
    let all = [
        of("failures and connections", &all.correctness),
        of("instructions", &all.cost),
        of("CPU", &all.cpu),
        of("latency", &all.latency),
        of("scale", &all.scale),
        of("copies", &all.copies),
        of("pools", &all.pools),
    ];
    all.into_iter().flatten().collect()
}

fn settings(all: &Everything) -> String {
    let line = |(name, setting, took): (&str, &Setting, u64)| format!("- {name} ({took} s): {}\n", about(setting));
    settings_of(all).into_iter().map(line).collect()
}

/// Replaces what stands between `<!-- bench: NAME -->` and `<!-- bench: end -->`.
fn replace_blocks(path: &Path, blocks: &[(&str, String)]) -> Result<()> {
    let Ok(mut text) = fs::read_to_string(path) else { return Ok(()) };
    for (name, block) in blocks {
        text = replaced(&text, name, block).with_context(|| format!("{}: {name}", path.display()))?;
    }
    fs::write(path, text)?;
    Ok(())
}

fn replaced(text: &str, name: &str, block: &str) -> Result<String> {
    let begin = format!("<!-- bench: {name} -->\n");
    let end = "<!-- bench: end -->";
    let Some((before, rest)) = text.split_once(&begin) else { return Ok(text.to_owned()) };
    let (_, after) = rest.split_once(end).context("no `<!-- bench: end -->` behind it")?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", block.trim()))
}

/// Replaces what stands between two marks in a line, if they are there.
fn within(text: &str, begin: &str, end: &str, new: &str) -> String {
    let Some((before, rest)) = text.split_once(begin) else { return text.to_owned() };
    let Some((_, after)) = rest.split_once(end) else { return text.to_owned() };
    format!("{before}{begin} {new}{end}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_two_marks_is_replaced() {
        assert_eq!(within("a <b>old\nold</b> c", "<b>", "</b>", "new"), "a <b> new</b> c");
        assert_eq!(within("no marks", "<b>", "</b>", "new"), "no marks");
    }

    #[test]
    fn a_block_is_replaced_and_the_rest_stays() {
        let text =
            "a\n<!-- bench: cpu -->\nold\n<!-- bench: end -->\nb\n<!-- bench: cost -->\nx\n<!-- bench: end -->\n";
        let new = replaced(text, "cpu", "new\n").expect("a block");
        assert_eq!(new, text.replace("old\n", "\nnew\n\n"));
        assert_eq!(replaced(&new, "cpu", "new").expect("a block"), new);
        assert_eq!(replaced("no block", "cpu", "new").expect("no block is fine"), "no block");
        assert!(replaced("<!-- bench: cpu -->\n", "cpu", "new").is_err());
    }
}
