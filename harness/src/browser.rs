//! Headless Chromium, if it is installed: what a page has become when it has run.

use std::{path::Path, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{process::Process, project};

/// The names under which distributions install it.
const NAMES: [&str; 5] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// Light or dark, as the user's system would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `prefers-color-scheme: light`.
    Light,
    /// `prefers-color-scheme: dark`.
    Dark,
}

/// A browser.
#[derive(Debug, Clone)]
pub struct Browser(PathBuf);

impl Browser {
    /// The one that is installed.
    pub fn find() -> Result<Self> {
        NAMES.iter().find_map(|name| project::program(name)).map(Self).context("chromium is not installed")
    }

    /// Loads a page, waits until its requests have ended (server-sent events, too), and returns its elements as text.
    pub async fn dom(&self, url: &str, within: Duration) -> Result<String> {
        let output = self.run(url, Scheme::Light, &["--dump-dom".into()], within).await?;
        // Warnings of the browser stand before and behind it.
        let start = output.find("<!DOCTYPE html>").with_context(|| format!("no page in {output}"))?;
        Ok(output[start..].to_owned())
    }

    /// As [`dom`](Self::dom), and leaves a picture of 1360 by 1000 points in this PNG file.
    pub async fn screenshot(&self, url: &str, scheme: Scheme, file: &Path, within: Duration) -> Result<()> {
        self.run(url, scheme, &[format!("--screenshot={}", file.display())], within).await?;
        ensure!(file.is_file(), "no picture");
        Ok(())
    }

    async fn run(&self, url: &str, scheme: Scheme, arguments: &[String], within: Duration) -> Result<String> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(&self.0);
        // The sandbox does not work for root, nor in most containers; the pages are our own.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        // The page's clock stands while a request is under way, and ends this long after the last one.
        command.args(["--virtual-time-budget=300", "--window-size=1360,1000"]);
        if scheme == Scheme::Dark {
            command.arg("--blink-settings=preferredColorScheme=0");
        }
        command.arg(format!("--user-data-dir={}", directory.path().join("profile").display()));
        command.args(arguments).arg(url);
        let mut process = Process::start(command, &directory.path().join("output.log"))?;
        let status = tokio::task::spawn_blocking(move || {
            let status = process.wait(within);
            (status, process.output())
        });
        let (status, output) = status.await?;
        let status = status.with_context(|| format!("the browser has not ended within {within:?}: {output}"))?;
        ensure!(status.success(), "the browser has ended with {status}: {output}");
        Ok(output)
    }
}
