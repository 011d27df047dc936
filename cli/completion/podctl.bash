# bash completion for podctl
_podctl() {
	local words=() word joined='' cur line value
	COMPREPLY=()
	# bash takes "--flag=value" apart: put it together again.
	for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
		if [[ ${#words[@]} -gt 0 && ($word == "=" || -n $joined) ]]; then
			words[${#words[@]} - 1]+=$word
		else
			words+=("$word")
		fi
		if [[ $word == "=" ]]; then joined=yes; else joined=''; fi
	done
	cur=${words[${#words[@]} - 1]}
	while IFS= read -r line; do
		value=${line%%$'\t'*}
		case $value in
		:files) compopt -o default ;;
		:commands) while IFS= read -r value; do COMPREPLY+=("$value"); done < <(compgen -c -- "$cur") ;;
		--*=*) COMPREPLY+=("${value#*=}") ;;
		*) COMPREPLY+=("$value") ;;
		esac
	done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
}
complete -F _podctl podctl
