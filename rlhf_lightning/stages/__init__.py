"""One LightningModule a stage."""
