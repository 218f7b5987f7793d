<?php
// Who answers; /slow takes a second and a half.
if (($_SERVER["SCRIPT_NAME"] ?? "") === "/slow") {
    usleep(1500000);
}
header("Content-Type: text/plain");
echo getmypid();
